"""What the interfaces add to a token: `python -m stagebeam.benchmarks.speed.overhead`.

The same greedy answer three ways, in turns: `Engine.submit` without events (the bare loop),
`AsyncEngine` with every event taken as it comes, and a C program over `libstagebeam` in a process of
its own, compiled here. All three give the same tokens; the ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stagebeam.benchmarks.speed.bench_command import Workload, add_workload_options, finish, head
from stagebeam.benchmarks.speed.bench_table import markdown_table, source_line
from stagebeam.benchmarks.speed.machine_speed import measure_machine
from stagebeam.benchmarks.speed.measure import say
from stagebeam.benchmarks.speed.statistics import paired_ratio, spread
from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.events import TokenText
from stagebeam.engine.params import SamplingParams, SearchParams

SOURCE = Path(__file__).with_suffix(".c")
BINDINGS = Path(__file__).resolve().parents[2] / "bindings" / "c"
QUESTION = "Tell a long story about a lighthouse keeper, his dog and the winter storms."
BARE, ASYNC, C_ABI = "bare loop", "AsyncEngine, every event", "C program, every event"
GREEDY = SearchParams(strategy="greedy")

# max_tokens -> seconds and tokens of one answer
Ask = Callable[[int], tuple[float, int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; table to stdout, files where asked."""
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__)
    add_workload_options(parser)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    options = parser.parse_args(arguments)
    workload = Workload(options)
    document = head(
        "overhead", f"Interfaces on {options.model}, {options.dtype}", workload, measure_machine()
    )
    with (
        Engine(
            workload.folder,
            dtype=options.dtype,
            backend=options.backend,
            kv_cache_bytes=options.kv_cache_bytes,
        ) as engine,
        c_program(workload.folder, options.dtype, options.kv_cache_bytes) as in_c,
    ):
        ways = {BARE: bare(engine), ASYNC: asynchronous(engine), C_ABI: in_c}
        records = measure_overhead(ways, options.rounds, options.tokens)
    document |= {
        "setting": {"dtype": options.dtype, "tokens": options.tokens},
        "records": records,
        "summary": {name: spread(seconds) for name, seconds in records.items()},
        "ratios": {name: paired_ratio(records[name], records[BARE]) for name in (ASYNC, C_ABI)},
    }
    finish(document, to_markdown(document), options, "overhead")
    return 0


def measure_overhead(
    ways: dict[str, Ask], num_rounds: int, num_tokens: int
) -> dict[str, list[float]]:
    """Seconds a token, a value a round; the order turns by one each round."""
    names = list(ways)
    for ask in ways.values():
        ask(8)
    records: dict[str, list[float]] = {name: [] for name in names}
    counts = set()
    for number in range(num_rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            seconds, count = ways[name](num_tokens)
            records[name].append(seconds / count)
            counts.add(count)
        say(f"round {number + 1}: " + ", ".join(f"{1000 * records[n][-1]:.3f} ms" for n in names))
    assert len(counts) == 1, f"the same answer has {counts} tokens"
    return records


def bare(engine: Engine) -> Ask:
    """Nobody listens."""

    def ask(max_tokens: int) -> tuple[float, int]:
        began = time.perf_counter()
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        handle = engine.submit(QUESTION, search=GREEDY, sampling=sampling, has_events=False)
        count = handle.result().usage.completion_tokens
        return time.perf_counter() - began, count

    return ask


def asynchronous(engine: Engine) -> Ask:
    """An event loop takes every event."""
    front = AsyncEngine(engine)

    async def take(max_tokens: int) -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        count = 0
        async with await front.submit(QUESTION, search=GREEDY, sampling=sampling) as handle:
            async for event in handle.events():
                count += len(event.token_ids) if isinstance(event, TokenText) else 0
        return count

    def ask(max_tokens: int) -> tuple[float, int]:
        began = time.perf_counter()
        count = asyncio.run(take(max_tokens))
        return time.perf_counter() - began, count

    return ask


@contextmanager
def c_program(folder: Path, dtype: str, kv_cache_bytes: int) -> Iterator[Ask]:
    """The C program, waiting for questions."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise InvalidInputError("there is no C compiler: set $CC")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "overhead"
        flags = ["-O2", f"-I{BINDINGS}", f"-L{BINDINGS}", f"-Wl,-rpath,{BINDINGS}", "-lstagebeam"]
        subprocess.run([compiler, str(SOURCE), "-o", str(program), *flags], check=True)
        threads = str(torch.get_num_threads())
        process = subprocess.Popen(
            [str(program), str(folder), dtype, str(kv_cache_bytes), threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "STAGEBEAM_PYTHON": sys.executable},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(max_tokens: int) -> tuple[float, int]:
            stdin.write(f"{max_tokens} {QUESTION}\n")
            stdin.flush()
            seconds, count = stdout.readline().split()
            return float(seconds), int(count)

        try:
            assert stdout.readline() == "ready\n", "the C program could not open the engine"
            yield ask
        finally:
            stdin.close()
            process.wait(timeout=60)


def to_markdown(document: dict[str, Any]) -> str:
    """A row an interface."""
    rows = []
    for name, seconds in document["summary"].items():
        ratio = document["ratios"].get(name)
        over = ""
        if ratio:
            over = f"{ratio['median'] - 1:+.2%}"
            if ratio["interval"]:
                over += f" ({ratio['interval'][0] - 1:+.2%} to {ratio['interval'][1] - 1:+.2%})"
        rows.append((name, f"{1000 * seconds['median']:.3f}", over))
    return (
        "\n\n".join(
            [
                f"# {document['title']}",
                f"One greedy answer of {document['setting']['tokens']} tokens a round; medians, and "
                "ratios within a round with 95 % bootstrap intervals.",
                markdown_table(("interface", "ms a token", "over the bare loop"), rows),
                source_line(document),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
