"""All speed measurements: `python -m stagebeam.benchmarks.speed.report` (`make bench-report`).

Each case is a command whose document lands in a folder of its own; a case that is done on this commit
is not run again, so a report that was stopped goes on. Invariant: measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.speed.bench_command import INCOMPLETE

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed"
CONFIG_11B = RESULTS / "llama-3.2-11b-vision.json"


def _short(path: Path) -> str:
    """The path from here where it lies below: documents keep their command."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


BF16 = "ours-bfloat16"
BOTH = "ours-float32,ours-bfloat16,ours-int8"
ONE = ",".join(f"{name}-one-order" for name in BOTH.split(","))
MIDSIZE = ("--model", "midsize")
# Name -> the module to run and its arguments; the first word of a name's document is its command.
CASES: dict[str, tuple[str, ...]] = {
    "bundled": (
        *("stagebeam.cli", "bench", "--rounds", "5", "--seconds", "30", "--contenders"),
        f"hf-published,hf-strong,hf-strong-one-order,{BOTH},ours-int4,"
        f"{ONE},ours-int4-one-order,{BF16}-one-order-gate",
    ),
    "midsize": (
        *("stagebeam.cli", "bench", *MIDSIZE, "--rounds", "2", "--seconds", "100"),
        *("--contenders", f"hf-published-sampled,hf-strong,{BOTH},{ONE}"),
    ),
    "beam-sizes": (
        *("stagebeam.cli", "profile", *MIDSIZE, "--dtype", "bfloat16", "--no-judging"),
        *("--beam-sizes", "1,2,4,8", "--rounds", "3", "--seconds", "60"),
    ),
    "judging": (
        *("stagebeam.cli", "bench", *MIDSIZE, "--rounds", "2", "--seconds", "60", "--contenders"),
        f"{BF16}-generate,{BF16},{BF16}-generate-one-order,{BF16}-one-order",
    ),
    "in-flight": (
        *("stagebeam.cli", "bench", *MIDSIZE, "--strategy", "greedy", "--questions", "16"),
        *("--rounds", "3", "--seconds", "80", "--contenders", f"{BF16}-serial-sampled,{BF16}"),
    ),
    "scaling": ("stagebeam.benchmarks.speed.scaling", *MIDSIZE, "--dtype", "bfloat16"),
    "overhead": ("stagebeam.benchmarks.speed.overhead", *MIDSIZE, "--dtype", "bfloat16"),
    "plan": (
        *("stagebeam.cli", "profile", "--plan", "--model", _short(CONFIG_11B)),
        *("--gpu", "a100,h100,h200,b200,l40s"),
        *("--beam-sizes", "1,2,4,8,16"),
    ),
    "plan-cpu": (
        *("stagebeam.cli", "profile", "--plan", *MIDSIZE, "--gpu", "cpu", "--dtype", "bfloat16"),
        *("--beam-sizes", "1,2,4,8,16"),
    ),
}
RESUMABLE = ("bundled", "midsize", "beam-sizes", "judging", "in-flight")  # they take a budget


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; exit code 3 where the time ended first."""
    parser = argparse.ArgumentParser(prog="report", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only", metavar="LIST", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, help="end by then; the same command goes on")
    parser.add_argument("--again", action="store_true", help="run what is done already, too")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    began = time.perf_counter()
    for name in names:
        folder = options.output / name
        command = [*CASES[name], "--output", _short(folder)]
        if options.list:
            print(f"{name}: python -m {' '.join(command)}")
            continue
        if not options.again and is_done(folder):
            continue
        left = None
        if options.seconds is not None:
            left = options.seconds - (time.perf_counter() - began)
            if left <= 0:
                return _stopped(name)
            if name in RESUMABLE:
                command += ["--budget", f"{left:.0f}"]
        print(f"== {name}", file=sys.stderr, flush=True)
        code = subprocess.run(
            [sys.executable, "-m", *command], stdout=subprocess.DEVNULL
        ).returncode
        if code == INCOMPLETE:
            return _stopped(name)
        if code:
            print(f"{name} failed with exit code {code}", file=sys.stderr)
            return code
    return 0


def _stopped(name: str) -> int:
    print(f"time is up at {name}; the same command goes on", file=sys.stderr)
    return INCOMPLETE


def is_done(folder: Path) -> bool:
    """Whether the folder holds a finished document of this commit."""
    document = read_document(folder)
    return document is not None and document.get("commit") == provenance.commit()


def read_document(folder: Path) -> dict[str, Any] | None:
    """The finished document in the folder; its table is written last."""
    for path in folder.glob("*.json"):
        if path.with_suffix(".md").exists():
            document: dict[str, Any] = json.loads(path.read_text("utf-8"))
            is_unfinished = "records" in document and "summary" not in document
            return None if is_unfinished else document
    return None


if __name__ == "__main__":
    raise SystemExit(main())
