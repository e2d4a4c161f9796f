"""Rounding float32 to a tensor's dtype inside a kernel, the same in the interpreter as on a device."""

from __future__ import annotations

import triton
import triton.language as tl

from stagebeam.kernels.triton_launch import INTERPRETED

# The interpreter truncates where a device rounds to nearest even (Triton 3.9.0).
TRUNCATES = tl.constexpr(INTERPRETED)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x, float32, rounded to nearest even in `dtype`."""
    if TRUNCATES and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x, float32, rounded to nearest even in `dtype` and widened again."""
    return cast(x, dtype).to(tl.float32)
