"""Variants through the whole compiler, for targets that are not here, on all cores.

Triton keeps what it compiled; a second report is quick. Under TRITON_INTERPRET=1 nothing compiles.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from stagebeam.benchmarks.kernels_report.binary import mma_kind, read_resources, widest_load_bits
from stagebeam.benchmarks.kernels_report.target import TARGETS, Target
from stagebeam.benchmarks.kernels_report.variant import Variant
from stagebeam.kernels.triton_launch import INTERPRETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A kernel on a target; `key` is the variant's, or the C++ kernel's name.

    block_m: rows of an attention kernel's tile, None for the others
    """

    key: str
    kernel: str
    dtype: str
    target: str
    num_warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_columns: int
    mma: str
    load_bits: int
    occupancy: float
    block_m: int | None = None


def compile_all(
    variants: Sequence[Variant], targets: Sequence[Target] = TARGETS, num_workers: int | None = None
) -> list[Compiled]:
    """Every variant for every target, in order; RuntimeError in an interpreting process."""
    if INTERPRETED:
        raise RuntimeError("kernels do not compile under TRITON_INTERPRET=1; unset it")
    jobs = list(product(variants, targets))
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        return [_compile_one(job) for job in jobs]
    with ProcessPoolExecutor(num_workers) as pool:
        return list(pool.map(_compile_one, jobs))


def compile_one(variant: Variant, target: Target, max_registers: int | None = None) -> Compiled:
    """One variant for one target; a limit of registers makes a kernel spill that otherwise would not."""
    compiled = triton.compile(
        variant.source(),
        target=GPUTarget("cuda", target.number, 32),
        options={**variant.options(), "maxnreg": max_registers},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        (resources,) = read_resources(Path(file.name)).values()
    ptx: str = compiled.asm["ptx"]
    shared_bytes = resources.shared_bytes + compiled.metadata.shared
    tensor_columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    return Compiled(
        key=variant.key,
        kernel=variant.kernel,
        dtype=variant.dtype,
        target=target.name,
        num_warps=variant.num_warps,
        registers=resources.registers,
        stack_bytes=resources.stack_bytes,
        shared_bytes=shared_bytes,
        tensor_columns=tensor_columns,
        mma=mma_kind(ptx),
        load_bits=widest_load_bits(ptx),
        occupancy=target.occupancy(
            registers=resources.registers,
            shared_bytes=shared_bytes,
            num_warps=variant.num_warps,
            tensor_columns=tensor_columns,
        ),
        block_m=variant.constant("BLOCK_M"),
    )


def _compile_one(job: tuple[Variant, Target]) -> Compiled:
    return compile_one(*job)
