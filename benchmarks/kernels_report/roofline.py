"""A decode step of the 11B on data-sheet GPUs: per op, the bytes and the least time for them.

A roof, not a prediction: full bandwidth or full products, no launch cost, nothing measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from stagebeam.benchmarks.kernels_report.passes import MetaEngine, OpCall, recorded_calls
from stagebeam.benchmarks.kernels_report.sizes import spec_of
from stagebeam.benchmarks.kernels_report.target import TARGETS
from stagebeam.benchmarks.kernels_report.traffic import Traffic, traffic_of
from stagebeam.benchmarks.speed.costs import GPUS

DENSE = "dense products (torch.mm)"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRoof:
    """All calls of an op in one step; least_us and moved_us by GPU, microseconds.

    num_programs: of the largest launch, to hold against a GPU's multiprocessors
    """

    op: str
    num_calls: int
    num_launches: int
    num_programs: int
    least_bytes: int
    moved_bytes: int
    least_us: dict[str, float]
    moved_us: dict[str, float]


def step_roofs(num_rows: int, size: str = "11B") -> list[OpRoof]:
    """The ops of one bf16 step of `num_rows` branches, the dense products last."""
    with recorded_calls() as (ops, calls):
        MetaEngine(size, torch.bfloat16, ops).decode(num_rows)
    by_op: dict[str, list[OpCall]] = defaultdict(list)
    for call in calls:
        by_op[call.op].append(call)
    parameters = spec_of(size).num_decode_parameters
    dense = Traffic(
        least_bytes=2 * parameters, moved_bytes=2 * parameters, flops=2 * parameters * num_rows
    )
    return [
        *(_roof(op, found, map(traffic_of, found)) for op, found in by_op.items()),
        _roof(DENSE, [], [dense]),
    ]


def _roof(op: str, calls: list[OpCall], traffic: Iterable[Traffic]) -> OpRoof:
    parts = list(traffic)
    launches = [launch for call in calls for launch in call.launches]
    programs = [_product(launch.grid) for launch in launches]

    def microseconds(gpu: str, sizes: Iterable[int]) -> float:
        sheet = GPUS[gpu]
        seconds = (
            max(size / sheet.bytes_per_second, part.flops / sheet.flops)
            for size, part in zip(sizes, parts)
        )
        return 1e6 * sum(seconds)

    least, moved = [p.least_bytes for p in parts], [p.moved_bytes for p in parts]
    gpus = [target.gpu for target in TARGETS]
    return OpRoof(
        op=op,
        num_calls=len(calls),
        num_launches=len(launches),
        num_programs=max(programs, default=0),
        least_bytes=sum(least),
        moved_bytes=sum(moved),
        least_us={gpu: microseconds(gpu, least) for gpu in gpus},
        moved_us={gpu: microseconds(gpu, moved) for gpu in gpus},
    )


def _product(grid: tuple[int, ...]) -> int:
    total = 1
    for length in grid:
        total *= length
    return total
