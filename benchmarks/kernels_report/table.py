"""The report as Markdown and as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stagebeam.benchmarks.kernels_report.compiling import Compiled
from stagebeam.benchmarks.kernels_report.passes import TAIL_TOKENS, TRUNK_TOKENS
from stagebeam.benchmarks.kernels_report.roofline import OpRoof
from stagebeam.benchmarks.kernels_report.target import TARGETS
from stagebeam.benchmarks.speed.costs import GPUS

_INTRODUCTION = f"""# GPU kernels, compiled ahead of time

Made by `make kernels-report` on a machine without a GPU: **nothing here was run on one.** Registers,
shared memory and instructions are the compilers'; occupancy and times are arithmetic on NVIDIA's
published limits.

## A decode step of the 11B in bf16: bytes and roofline

{TRUNK_TOKENS} trunk tokens of one question, {TAIL_TOKENS} tail tokens a branch, an image of four tiles. Times are
bytes over the data sheet's bandwidth (or products over its peak where that is longer), without launch
costs: no kernel is faster. "moved" counts what programs load and store, from a cache or not.
"programs" is the grid of the largest launch; an A100 has 108 multiprocessors, an H100 132, a B200 148.
"""


def markdown(
    kernels: Sequence[Compiled], roofs: Mapping[int, Sequence[OpRoof]], notes: Sequence[str]
) -> str:
    parts = [_INTRODUCTION]
    gpus = [target.gpu for target in TARGETS]
    names = [GPUS[gpu].name for gpu in gpus]
    parts.append(f"| N | {' | '.join(f'step on {name}, ms' for name in names)} | moved / least |")
    parts.append("|" + "---|" * (len(gpus) + 2))
    for num_rows, ops in roofs.items():
        times = [sum(op.moved_us[gpu] for op in ops) / 1000 for gpu in gpus]
        ratio = sum(op.moved_bytes for op in ops) / sum(op.least_bytes for op in ops)
        cells = " | ".join(f"{time:.2f}" for time in times)
        parts.append(f"| {num_rows} | {cells} | {ratio:.3f} |")
    for num_rows, ops in roofs.items():
        parts.append(f"\n### N = {num_rows}\n")
        parts.append(
            "| op | calls | launches | programs | least MB | moved MB | moved / least | "
            + " | ".join(f"{name}, us" for name in names)
            + " |"
        )
        parts.append("|" + "---|" * (7 + len(gpus)))
        for op in ops:
            times_us = " | ".join(f"{op.moved_us[gpu]:.1f}" for gpu in gpus)
            counts = f"{op.num_calls or ''} | {op.num_launches or ''} | {op.num_programs or ''}"
            parts.append(
                f"| {op.op} | {counts} | {op.least_bytes / 1e6:.2f} | {op.moved_bytes / 1e6:.2f} | "
                f"{op.moved_bytes / op.least_bytes:.2f} | {times_us} |"
            )
    parts.append("\n## Kernels\n")
    parts += [f"{note}\n" for note in notes]
    parts.append(
        "Columns hold sm_80 / sm_90 / sm_100. No kernel spills a register (a stack of 0 bytes).\n"
    )
    parts.append("| kernel | registers | shared KiB | occupancy | products | widest load, bits |")
    parts.append("|" + "---|" * 6)
    by_key: dict[str, list[Compiled]] = {}
    for kernel in kernels:
        by_key.setdefault(kernel.key, []).append(kernel)
    for key, found in by_key.items():
        columns = (
            [str(k.registers) for k in found],
            [f"{k.shared_bytes / 1024:.1f}" for k in found],
            [f"{k.occupancy:.0%}" for k in found],
            [k.mma for k in found],
            [str(k.load_bits) for k in found],
        )
        parts.append(f"| {key} | {' | '.join(_joined(column) for column in columns)} |")
    return "\n".join(parts) + "\n"


def document(
    kernels: Sequence[Compiled],
    roofs: Mapping[int, Sequence[OpRoof]],
    notes: Sequence[str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "ran_on_a_gpu": False,
        "versions": dict(versions),
        "notes": list(notes),
        "decode_steps": {
            str(num_rows): [asdict(op) for op in ops] for num_rows, ops in roofs.items()
        },
        "kernels": [asdict(kernel) for kernel in kernels],
    }


def _joined(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else " / ".join(values)
