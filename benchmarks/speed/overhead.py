"""What the interfaces add to a token: `python -m stagebeam.benchmarks.speed.overhead`.

The same greedy answer three ways, in turns and on one engine: `Engine.submit` without events (the
bare loop), `AsyncEngine` with every event taken as it comes, and C code over `libstagebeam`, compiled
here. Times every native step from inside: what an interface costs shows between two steps, and in
a step where its threads take a processor from it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from stagebeam.benchmarks.speed.bench_command import (
    MIDSIZE,
    Workload,
    add_workload_options,
    finish,
    head,
)
from stagebeam.benchmarks.speed.bench_table import markdown_table, source_line
from stagebeam.benchmarks.speed.machine_speed import measure_machine
from stagebeam.benchmarks.speed.measure import say
from stagebeam.benchmarks.speed.statistics import paired_difference, paired_ratio, spread
from stagebeam.bindings.locations import C_LIBRARY
from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.events import TokenText
from stagebeam.engine.params import SamplingParams, SearchParams

SOURCE = Path(__file__).with_suffix(".c")
QUESTION = "Tell a long story about a lighthouse keeper, his dog and the winter storms."
BARE, ASYNC, C_CODE = "bare loop", "AsyncEngine, every event", "C code, every event"
GREEDY = SearchParams(strategy="greedy")

Ask = Callable[[int], int]  # max_tokens -> tokens of the answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; table to stdout, files where asked."""
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__)
    add_workload_options(parser)
    parser.set_defaults(model=MIDSIZE)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--tokens", type=int, default=20, help="of each answer")
    options = parser.parse_args(arguments)
    workload = Workload(options)
    document = head(
        "overhead", f"Interfaces on {options.model}, {options.dtype}", workload, measure_machine()
    )
    folder = str(workload.folder)
    with (
        Engine(
            folder,
            dtype=options.dtype,
            backend=options.backend,
            kv_cache_bytes=options.kv_cache_bytes,
            poll_steps=1,
        ) as engine,
        c_code({folder: engine}) as in_c,
        steps_of(engine) as steps,
    ):
        rounds = in_turns(ways(engine, in_c[folder]), options.rounds, options.tokens, steps)
    records, host = (
        {name: [getattr(one, part) for one in tokens] for name, tokens in rounds.items()}
        for part in ("seconds", "host_seconds")
    )
    over = (ASYNC, C_CODE)
    document |= {
        "setting": {"dtype": options.dtype, "tokens": options.tokens},
        "records": records,
        "host_records": host,
        "summary": {name: spread(seconds) for name, seconds in records.items()},
        "ratios": {name: paired_ratio(records[name], records[BARE]) for name in over},
        "added_host": {name: paired_difference(host[name], host[BARE]) for name in over},
    }
    finish(document, to_markdown(document), options, "overhead")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of one answer, the median of its steps.

    seconds: from a step's start to the next one's; host_seconds: the part outside the native step
    """

    seconds: float
    host_seconds: float


@contextmanager
def steps_of(engine: Engine) -> Iterator[list[tuple[float, float]]]:
    """A list that each native step of the engine adds its start and end to."""
    if engine.native_model is None:
        raise InvalidInputError("this looks at the native program's steps: use --backend auto")
    steps: list[tuple[float, float]] = []
    inner = engine.native_model.decode_steps

    def timed(*arguments: Any) -> int:
        began = time.perf_counter()
        num_steps = inner(*arguments)
        steps.append((began, time.perf_counter()))
        return num_steps

    with patch.object(engine.native_model, "decode_steps", timed):
        yield steps


def ways(engine: Engine, in_c: Ask) -> dict[str, Ask]:
    """The three interfaces of one engine."""
    return {BARE: bare(engine), ASYNC: asynchronous(engine), C_CODE: in_c}


def in_turns(
    asks: dict[str, Ask], num_rounds: int, num_tokens: int, steps: list[tuple[float, float]]
) -> dict[str, list[Token]]:
    """A token's time, a value a round; the order turns by one each round.

    steps: what `steps_of` fills
    """
    names = list(asks)
    records: dict[str, list[Token]] = {name: [] for name in names}
    counts = {ask(num_tokens) for ask in asks.values()}  # and a warm-up
    for number in range(num_rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            steps.clear()
            counts.add(asks[name](num_tokens))
            starts, ends = np.array(steps).T
            records[name].append(
                Token(
                    seconds=float(np.median(np.diff(starts))),
                    host_seconds=float(np.median(starts[1:] - ends[:-1])),
                )
            )
        last = [1000 * records[name][-1].seconds for name in names]
        say(f"round {number + 1}: " + ", ".join(f"{ms:.3f} ms" for ms in last))
    assert len(counts) == 1, f"the same answer has {counts} tokens"
    return records


def bare(engine: Engine) -> Ask:
    """Nobody listens."""

    def ask(max_tokens: int) -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        handle = engine.submit(QUESTION, search=GREEDY, sampling=sampling, has_events=False)
        return handle.result().usage.completion_tokens

    return ask


def asynchronous(engine: Engine) -> Ask:
    """An event loop takes every event."""
    front, loop = AsyncEngine(engine), asyncio.new_event_loop()

    async def take(max_tokens: int) -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        count = 0
        async with await front.submit(QUESTION, search=GREEDY, sampling=sampling) as handle:
            async for event in handle.events():
                count += len(event.token_ids) if isinstance(event, TokenText) else 0
        return count

    return lambda max_tokens: loop.run_until_complete(take(max_tokens))


@contextmanager
def c_code(engines: dict[str, Engine]) -> Iterator[dict[str, Ask]]:
    """The C code on each of the engines, which go by their folders.

    libstagebeam opens an engine by calling `stagebeam.Engine`: here it is handed one that is open,
    so that all three ways have the same weights at the same addresses.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise InvalidInputError("there is no C compiler: set $CC")
    folder = C_LIBRARY.parent
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch("stagebeam.Engine", lambda path, **_: engines[path]),
    ):
        built = Path(scratch) / "overhead.so"
        flags = ["-O2", "-shared", "-fPIC", f"-I{folder}", f"-L{folder}", f"-Wl,-rpath,{folder}"]
        command = [compiler, str(SOURCE), "-o", str(built), *flags, "-lstagebeam"]
        subprocess.run(command, check=True)
        code = ctypes.CDLL(str(built))  # lets go of the GIL during a call
        code.overhead_error.restype = ctypes.c_char_p
        code.overhead_ask.restype = ctypes.c_longlong
        code.overhead_ask.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_longlong]

        def opened(path: str) -> Ask:
            handle = ctypes.c_uint64()
            if code.overhead_open(path.encode(), ctypes.byref(handle)):
                raise InvalidInputError(code.overhead_error().decode())

            def ask(max_tokens: int) -> int:
                count = code.overhead_ask(handle, QUESTION.encode(), max_tokens)
                assert count >= 0, code.overhead_error().decode()
                return count

            return ask

        yield {path: opened(path) for path in engines}


def to_markdown(document: dict[str, Any]) -> str:
    """A row an interface."""
    rows = []
    token = document["summary"][BARE]["median"]
    for name, seconds in document["summary"].items():
        over = added = share = ""
        if name in document["ratios"]:
            over = _with_interval(document["ratios"][name], lambda ratio: f"{ratio - 1:+.2%}")
            host = document["added_host"][name]
            added = _with_interval(host, lambda value: f"{1e6 * value:+.0f}")
            share = f"{host['median'] / token:+.2%}"
        rows.append((name, f"{1000 * seconds['median']:.3f}", over, added, share))
    columns = (
        *("interface", "ms a token", "over the bare loop"),
        *("of that between two steps, us", "of a token's time"),
    )
    text = (
        f"One greedy answer of {document['setting']['tokens']} tokens a round; a token's time is the "
        "answer's median from step to step. Medians over rounds of ratios and differences within a "
        "round, with 95 % bootstrap intervals."
    )
    parts = [f"# {document['title']}", text, markdown_table(columns, rows), source_line(document)]
    return "\n\n".join(parts) + "\n"


def _with_interval(found: dict[str, Any], show: Callable[[float], str]) -> str:
    if not found["interval"]:
        return show(found["median"])
    return f"{show(found['median'])} ({' to '.join(map(show, found['interval']))})"


if __name__ == "__main__":
    raise SystemExit(main())
