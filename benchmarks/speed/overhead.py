"""What the interfaces add to a token: `python -m stagebeam.benchmarks.speed.overhead`.

The same greedy answer three ways, in turns and on one engine: `Engine.submit` without events (the
bare loop), `AsyncEngine` with every event taken as it comes, and C code over `libstagebeam`, compiled
here. Once on the model, in wall-clock time; and once on a drawn model so small that the host's work
shows, on one thread and in the processor's time, which others on the machine disturb little.
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import stagebeam
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
from stagebeam.benchmarks.speed.synthetic import SyntheticSize, write_synthetic
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
SMALL = SyntheticSize(num_layers=1, hidden_size=192, vocab_size=608)
SMALL_TOKENS = 200
SMALL_CACHE_BYTES = 4 << 20

Ask = Callable[[int], int]  # max_tokens -> tokens of the answer
Clock = Callable[[], float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; table to stdout, files where asked."""
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__)
    add_workload_options(parser)
    parser.set_defaults(model=MIDSIZE)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=40, help="of each answer")
    parser.add_argument("--small-rounds", type=int, default=30, help="on the drawn model")
    options = parser.parse_args(arguments)
    workload = Workload(options)
    document = head(
        "overhead", f"Interfaces on {options.model}, {options.dtype}", workload, measure_machine()
    )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        small_folder = write_synthetic(SMALL, scratch)
        engines = {
            str(workload.folder): Engine(
                workload.folder,
                dtype=options.dtype,
                backend=options.backend,
                kv_cache_bytes=options.kv_cache_bytes,
            ),
            str(small_folder): Engine(
                small_folder,
                dtype="float32",
                kv_cache_bytes=SMALL_CACHE_BYTES,
                num_threads=1,
                poll_steps=1,
            ),
        }
        for engine in engines.values():
            stack.enter_context(engine)
        in_c = stack.enter_context(c_code(engines))
        on_small = in_turns(
            ways(engines[str(small_folder)], in_c[str(small_folder)]),
            options.small_rounds,
            SMALL_TOKENS,
            time.process_time,
        )
        records = in_turns(
            ways(engines[str(workload.folder)], in_c[str(workload.folder)]),
            options.rounds,
            options.tokens,
            time.perf_counter,
        )
    over = (ASYNC, C_CODE)
    document |= {
        "setting": {
            "dtype": options.dtype,
            "tokens": options.tokens,
            "small_tokens": SMALL_TOKENS,
        },
        "records": records,
        "summary": {name: spread(seconds) for name, seconds in records.items()},
        "ratios": {name: paired_ratio(records[name], records[BARE]) for name in over},
        "small_records": on_small,
        "added_cpu": {name: paired_difference(on_small[name], on_small[BARE]) for name in over},
    }
    finish(document, to_markdown(document), options, "overhead")
    return 0


def ways(engine: Engine, in_c: Ask) -> dict[str, Ask]:
    """The three interfaces of one engine."""
    return {BARE: bare(engine), ASYNC: asynchronous(engine), C_CODE: in_c}


def in_turns(
    asks: dict[str, Ask], num_rounds: int, num_tokens: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds a token by the clock, a value a round; the order turns by one each round."""
    names = list(asks)
    records: dict[str, list[float]] = {name: [] for name in names}
    counts = {ask(num_tokens) for ask in asks.values()}  # and a warm-up
    for number in range(num_rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            began = clock()
            count = asks[name](num_tokens)
            records[name].append((clock() - began) / count)
            counts.add(count)
        say(f"round {number + 1}: " + ", ".join(f"{1000 * records[n][-1]:.3f} ms" for n in names))
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
        patch.object(stagebeam, "Engine", lambda path, **_: engines[path]),
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
            cost = document["added_cpu"][name]
            added = _with_interval(cost, lambda value: f"{1e6 * value:.0f}")
            share = f"{cost['median'] / token:.2%}"
        rows.append((name, f"{1000 * seconds['median']:.3f}", over, added, share))
    columns = (
        *("interface", "ms a token", "over the bare loop"),
        *("added processor time, us a token", "of a token's time"),
    )
    setting = document["setting"]
    text = (
        f"One greedy answer of {setting['tokens']} tokens a round; medians, and ratios within a round "
        "with 95 % bootstrap intervals. The added processor time, of all threads together, is "
        f"measured on a drawn model of one layer, {setting['small_tokens']} tokens a round."
    )
    parts = [f"# {document['title']}", text, markdown_table(columns, rows), source_line(document)]
    return "\n\n".join(parts) + "\n"


def _with_interval(found: dict[str, Any], show: Callable[[float], str]) -> str:
    if not found["interval"]:
        return show(found["median"])
    return f"{show(found['median'])} ({' to '.join(map(show, found['interval']))})"


if __name__ == "__main__":
    raise SystemExit(main())
