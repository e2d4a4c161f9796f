"""`make gpu-check`: everything that only a GPU can show, in one go, as one JSON and one HTML page.

Runs the kernel tests with their tensors on the device, the tests marked `gpu` (captured steps against
the CPU's tokens), compares the bundled model's answers on both devices, and times the captured step.
Without a GPU it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import html
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams, SearchParams

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check's outcome; `details` are the numbers or the words behind it."""

    name: str
    is_ok: bool
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def run_check(name: str, check: Callable[[], tuple[bool, dict[str, Any]]]) -> Check:
    """Run one check; an exception is a failure with its words, so that the others still run."""
    began = time.perf_counter()
    try:
        is_ok, details = check()
    except Exception as error:  # whatever a device throws belongs in the report
        is_ok, details = False, {"error": f"{type(error).__name__}: {error}"}
    return Check(name=name, is_ok=is_ok, seconds=time.perf_counter() - began, details=details)


def run_tests(*arguments: str) -> tuple[bool, dict[str, Any]]:
    """pytest's verdict and its last lines."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ran.returncode == 0, {"output": "\n".join(ran.stdout.splitlines()[-15:])}


def first_difference(got: Sequence[int], expected: Sequence[int]) -> int | None:
    """Where two token lists part; None where they are equal."""
    for i, (a, b) in enumerate(zip(got, expected)):
        if a != b:
            return i
    return None if len(got) == len(expected) else min(len(got), len(expected))


def greedy_tokens(device: str, num_tokens: int) -> list[int]:
    """The bundled model's greedy continuation in float32."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    with Engine(device=device, dtype="float32", kv_cache_bytes=64 << 20) as engine:
        return list(engine.generate("What is at the top left?", sampling)[0].outputs[0].token_ids)


def same_tokens() -> tuple[bool, dict[str, Any]]:
    """Greedy tokens of the captured step on the GPU against the plain step's on the CPU."""
    got, expected = greedy_tokens("cuda", 64), greedy_tokens("cpu", 64)
    at = first_difference(got, expected)
    return at is None, {"num_tokens": len(expected), "first_difference": at}


def step_times() -> tuple[bool, dict[str, Any]]:
    """Decode milliseconds a step of a stage at beam sizes 1, 4 and 8; measured, nothing to pass."""
    details: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    with Engine(device="cuda", kv_cache_bytes=256 << 20) as engine:
        for beam_size in (1, 4, 8):
            sampling = SamplingParams(temperature=1.0, max_tokens=128, seed=1)
            search = SearchParams(strategy="best_of_n", beam_size=beam_size)
            engine.answer("How many circles are there?", search=search, sampling=sampling)
            answer = engine.answer("How many circles are there?", search=search, sampling=sampling)
            steps = max(1, answer.usage.decode_steps)
            details[f"decode_ms_a_step_beam_{beam_size}"] = 1000 * answer.timings.decode / steps
    return True, details


def write_report(checks: Sequence[Check], folder: Path) -> None:
    """gpu-check.json and gpu-check.html in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "is_ok": all(check.is_ok for check in checks),
        "torch": torch.__version__,
        "checks": [asdict(check) for check in checks],
    }
    (folder / "gpu-check.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    rows = "".join(
        f"<tr><td>{html.escape(check.name)}</td><td>{'ok' if check.is_ok else 'FAILED'}</td>"
        f"<td>{check.seconds:.1f} s</td>"
        f"<td><pre>{html.escape(json.dumps(check.details, indent=1))}</pre></td></tr>"
        for check in checks
    )
    page = (
        "<!doctype html><meta charset=utf-8><title>stagebeam gpu-check</title>"
        "<style>body{font-family:sans-serif}td{vertical-align:top;padding:.3em 1em}</style>"
        f"<h1>gpu-check: {'ok' if document['is_ok'] else 'FAILED'}</h1><table>{rows}</table>"
    )
    (folder / "gpu-check.html").write_text(page, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"))
    output: Path = parser.parse_args(arguments).output
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device, so nothing was checked", file=sys.stderr)
        return 1
    checks = [
        run_check("kernels on the device", lambda: run_tests("tests/kernels")),
        run_check("tests marked gpu", lambda: run_tests("-m", "gpu", "tests")),
        run_check("tokens of GPU and CPU", same_tokens),
        run_check("step times", step_times),
    ]
    write_report(checks, output)
    for check in checks:
        print(f"{'ok    ' if check.is_ok else 'FAILED'} {check.name} ({check.seconds:.1f} s)")
    print(f"report: {output / 'gpu-check.html'}")
    return 0 if all(check.is_ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
