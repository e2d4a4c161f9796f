"""The native CPU backend's race on SmolLM2-135M: against the memory's floor, HF and other engines.

`python -m stagebeam.benchmarks.speed.native_race --output FOLDER` measures every part, each in a process
of its own, into FOLDER/result.json. It may be stopped: rounds that are there are not run again while
commit, machine, versions and settings are the same. With `--seconds N` it ends by then with exit code 3
and the same command goes on, so that a quiet machine is needed for a minute or two at a time.
`--list` says what is missing, `--part NAME` measures one part in this process. `native_card` writes the
result's tables into docs/native.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from stagebeam.benchmarks.speed import native_engines, native_parts
from stagebeam.benchmarks.speed.bench_command import INCOMPLETE
from stagebeam.benchmarks.speed.native_result import SavedPart
from stagebeam.benchmarks.speed.native_setting import Part, Race, Settings

RESULTS = Path(__file__).resolve().parents[1] / "results" / "native"
PARTS: dict[str, Part] = native_parts.PARTS | native_engines.PARTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing; exit code 3 where the time ended first."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = Settings(
        **{f.name: getattr(options, f.name) for f in fields(Settings) if f.name != "formats"},
        formats=tuple(options.formats.split(",")),
    )
    end = None if options.seconds is None else time.perf_counter() + options.seconds
    if options.part is not None:
        part = PARTS[options.part]
        saved = SavedPart(options.part, part, settings, options.output)
        if options.again:
            saved.forget()
        return measure(Race(settings, options.part), part, saved, end)
    names = options.only.split(",") if options.only else list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    saved_parts = {n: SavedPart(n, PARTS[n], settings, options.output) for n in names}
    waiting = [n for n, saved in saved_parts.items() if options.again or saved.num_missing]
    if options.list:
        for name in waiting:
            rounds, seconds = saved_parts[name].num_missing, PARTS[name].seconds
            print(f"{name}: {rounds} rounds missing, about {seconds:.0f} s to load and for one")
        return 0
    for number, name in enumerate(waiting):
        left = None if end is None else end - time.perf_counter()
        if left is not None and number > 0 and left < PARTS[name].seconds:
            return _stopped(name)
        code = _in_own_process(name, options, left)
        if code:
            return _stopped(name) if code == INCOMPLETE else code
    return 0


def measure(race: Race, part: Part, saved: SavedPart, end: float | None) -> int:
    """The part's missing rounds: at least one, then as many as end before `end`."""
    if not saved.num_missing:
        return 0
    with part.open(race) as measure_round:
        longest = 0.0
        while saved.num_missing:
            began = time.perf_counter()
            if end is not None and longest and began + longest > end:
                return INCOMPLETE
            race.begin_round(saved.next_round)
            before = race.bandwidth()
            records = measure_round(saved.next_round)
            saved.add(records, (before + race.bandwidth()) / 2)
            longest = max(longest, time.perf_counter() - began)
    return 0


def _in_own_process(name: str, options: argparse.Namespace, seconds: float | None) -> int:
    """Measure a part where no other engine's threads have been."""
    command = [sys.executable, "-m", "stagebeam.benchmarks.speed.native_race", "--part", name]
    output: Path = options.output.resolve()
    here = Path.cwd()
    if output.is_relative_to(here):  # results keep their command
        output = output.relative_to(here)
    command += ["--output", str(output), "--formats", options.formats]
    for field in fields(Settings):
        if field.name != "formats":
            command += [f"--{field.name}", str(getattr(options, field.name))]
    if options.again:
        command.append("--again")
    if seconds is not None:
        command += ["--seconds", f"{seconds:.0f}"]
    print(f"== {name}", file=sys.stderr, flush=True)
    code = subprocess.run(command).returncode
    if code not in (0, INCOMPLETE):
        print(f"{name} failed with exit code {code}", file=sys.stderr)
    return code


def _stopped(name: str) -> int:
    print(f"time is up at {name}; the same command goes on", file=sys.stderr)
    return INCOMPLETE


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="native_race", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=list(PARTS), help="this part alone, in this process")
    parser.add_argument("--only", metavar="LIST", help="these parts instead of all")
    parser.add_argument("--seconds", type=float, help="end by then; the same command goes on")
    parser.add_argument("--again", action="store_true", help="start over instead of going on")
    parser.add_argument("--list", action="store_true", help="print what is missing and stop")
    parser.add_argument("--formats", default=",".join(defaults.formats))
    parser.add_argument("--prompt", type=int, default=defaults.prompt)
    parser.add_argument("--tokens", type=int, default=defaults.tokens)
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
