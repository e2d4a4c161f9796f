"""Triton rms_norm; the package's docstring is the contract. Short rows share a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast, rounded
from stagebeam.kernels.triton_launch import launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable

ELEMENTS = 2048  # a program's tile holds at least this many where the rows are short


@triton.jit
def rms_norm_tile(x, weight, eps, num_columns):
    """x [T, C] float32 with zeros past num_columns, weight [C] -> [T, C] in weight's dtype."""
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / num_columns + eps)
    normed = rounded(x * scale[:, None], weight.dtype)
    return cast(weight.to(tl.float32)[None, :] * normed, weight.dtype)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    x_stride,
    eps,
    NUM_COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    is_column = columns < NUM_COLUMNS
    is_inside = (rows < num_rows)[:, None] & is_column[None, :]
    rows = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + rows * x_stride + columns[None, :], mask=is_inside, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0)
    out = rms_norm_tile(x.to(tl.float32), weight, eps, NUM_COLUMNS)
    tl.store(out_ptr + rows * NUM_COLUMNS + columns[None, :], out, mask=is_inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check_shapes("x T C, weight C", x, weight)
    assert x.stride(1) == 1, "x's columns must be contiguous"
    num_rows, num_columns = x.shape
    out = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    block_t, block_c, num_warps = row_tiles(num_columns)
    launch(
        rms_norm_kernel,
        (triton.cdiv(num_rows, block_t),),
        *(x, weight, out, num_rows, x.stride(0), eps),
        NUM_COLUMNS=num_columns,
        BLOCK_T=block_t,
        BLOCK_C=block_c,
        num_warps=num_warps,
    )
    return out


def row_tiles(num_columns: int) -> tuple[int, int, int]:
    """(rows a program, width of its tile, warps) for an op that reduces over whole rows."""
    block_c = tile(num_columns)
    return max(1, ELEMENTS // block_c), block_c, 4 if block_c <= 2048 else 8
