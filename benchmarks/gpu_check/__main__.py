"""`make gpu-check`: everything that only a GPU can show, in one go, as one JSON and one HTML page.

Runs the kernel tests with their tensors on the device and the tests marked `gpu` (captured steps
against the CPU's tokens), compares tokens and half-precision logits, and times kernels and steps.
Without a GPU it says so and exits with 1. `--dry-run` runs the comparing and timing parts on the CPU,
small, to see that they work; its report is named and marked so that nobody takes it for a GPU's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stagebeam.benchmarks.gpu_check.checks import Outcome, run_check, run_tests
from stagebeam.benchmarks.gpu_check.half_precision import half_precision_parity
from stagebeam.benchmarks.gpu_check.kernel_times import Sizes, kernel_times
from stagebeam.benchmarks.gpu_check.report import STAND_IN, write_report
from stagebeam.benchmarks.gpu_check.step_times import step_times
from stagebeam.benchmarks.gpu_check.tokens import same_tokens
from stagebeam.kernels.branch_attention.triton_kernel import branch_attention_unshared
from stagebeam.kernels.registry import resolve

Checks = Sequence[tuple[str, Callable[[], Outcome]]]

DRY_SIZES = Sizes(
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    trunk_tokens=64,
    tail_tokens=32,
    vision_tokens=48,
)


def gpu_checks() -> Checks:
    device = torch.device("cuda")
    return (
        ("kernels on the device", lambda: run_tests("tests/kernels")),
        ("tests marked gpu", lambda: run_tests("-m", "gpu", "tests")),
        ("tokens of GPU and CPU", lambda: same_tokens("cuda")),
        ("half precision against HF", lambda: half_precision_parity("cuda")),
        (
            "kernel times against the memory floor",
            lambda: kernel_times(
                resolve("auto", "cuda"), device, unshared=branch_attention_unshared
            ),
        ),
        ("step times beside HF generate", lambda: step_times("cuda")),
    )


def dry_checks() -> Checks:
    """The same code on a CPU, reference kernels, tiny sizes."""
    ops = resolve("reference")
    return (
        ("tokens of CPU and CPU", lambda: same_tokens("cpu", 4)),
        (
            "kernel times of the references",
            lambda: kernel_times(
                ops,
                torch.device("cpu"),
                unshared=None,
                sizes=DRY_SIZES,
                bandwidth_bytes=1 << 20,
                num_repeats=1,
            ),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"))
    parser.add_argument("--dry-run", action="store_true", help="a part of it on the CPU, marked so")
    options = parser.parse_args(arguments)
    output: Path = options.output
    if not (options.dry_run or torch.cuda.is_available()):
        print("gpu-check: torch sees no CUDA device, so nothing was checked", file=sys.stderr)
        return 1
    wanted = dry_checks() if options.dry_run else gpu_checks()
    device = STAND_IN if options.dry_run else torch.cuda.get_device_name()
    checks = [run_check(name, check) for name, check in wanted]
    write_report(checks, output, device=device)
    print(device)
    for check in checks:
        print(f"{'ok    ' if check.is_ok else 'FAILED'} {check.name} ({check.seconds:.1f} s)")
    print(f"report: {output}")
    return 0 if all(check.is_ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
