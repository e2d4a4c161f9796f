"""Launching Triton kernels, or noting down what would be launched.

Knows no op. A call on meta tensors launches nothing: the wrappers' shapes and grids are then all
there is, which is how a step is shown to look at no value, and how `record_launches` collects the
exact configurations that the ahead-of-time report compiles. Importing this needs `triton`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

# Set by TRITON_INTERPRET=1 before the first `triton.jit` decorator ran.
INTERPRETED: bool = triton.knobs.runtime.interpret


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One recorded launch: the kernel, its grid, and every argument by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    has_fp_fusion: bool


_recorded: ContextVar[list[Launch] | None] = ContextVar("_recorded", default=None)


def why_unavailable() -> str | None:
    """The reason why Triton kernels cannot run in this process; None if they can."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "needs a CUDA device (or TRITON_INTERPRET=1 for the interpreter)"


def must_upcast(dtype: torch.dtype) -> bool:
    """Whether operands must be widened after the load: the interpreter's bf16 arithmetic is wrong."""
    return INTERPRETED and dtype == torch.bfloat16


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collect the launches of this thread, in order; calls on meta tensors run nothing else."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    has_fp_fusion: bool = True,
    **constants: Any,
) -> None:
    """Run `kernel` over `grid` on the current stream; an empty grid is no launch.

    args:      the kernel's arguments in order
    constants: its constexpr parameters
    """
    if 0 in grid:
        return
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(
            Launch(
                kernel=kernel,
                grid=grid,
                arguments={**dict(zip(kernel.arg_names, args)), **constants},
                num_warps=num_warps,
                num_stages=num_stages,
                has_fp_fusion=has_fp_fusion,
            )
        )
    if any(isinstance(arg, Tensor) and arg.is_meta for arg in args):
        return
    kernel[grid](
        *args,
        **constants,
        num_warps=num_warps,
        num_stages=num_stages,
        enable_fp_fusion=has_fp_fusion,
    )


def tile(size: int, least: int = 1) -> int:
    """The width of a tile that holds `size` elements: a power of two."""
    return max(triton.next_power_of_2(size), least)
