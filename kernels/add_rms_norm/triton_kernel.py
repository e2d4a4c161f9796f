"""Triton add_rms_norm; the package's docstring is the contract. One pass over the stream."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.rms_norm.triton_kernel import rms_norm_tile, row_tiles
from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast
from stagebeam.kernels.triton_launch import launch
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable


@triton.jit(do_not_specialize=["num_rows"])
def add_rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    sum_ptr,
    num_rows,
    x_stride,
    residual_stride,
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
    columns = columns[None, :]
    x = tl.load(x_ptr + rows * x_stride + columns, mask=is_inside, other=0.0)
    residual = tl.load(residual_ptr + rows * residual_stride + columns, mask=is_inside, other=0.0)
    weight = tl.load(weight_ptr + tl.arange(0, BLOCK_C), mask=is_column, other=0.0)
    total = cast(x.to(tl.float32) + residual.to(tl.float32), sum_ptr.dtype.element_ty)
    normed = rms_norm_tile(total.to(tl.float32), weight, eps, NUM_COLUMNS)
    tl.store(sum_ptr + rows * NUM_COLUMNS + columns, total, mask=is_inside)
    tl.store(normed_ptr + rows * NUM_COLUMNS + columns, normed, mask=is_inside)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_shapes("x T C, residual T C, weight C", x, residual, weight)
    assert x.stride(1) == residual.stride(1) == 1, "columns must be contiguous"
    num_rows, num_columns = x.shape
    normed, new_residual = (
        torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device) for _ in range(2)
    )
    block_t, block_c, num_warps = row_tiles(num_columns)
    launch(
        add_rms_norm_kernel,
        (triton.cdiv(num_rows, block_t),),
        *(x, residual, weight, normed, new_residual),
        *(num_rows, x.stride(0), residual.stride(0), eps),
        NUM_COLUMNS=num_columns,
        BLOCK_T=block_t,
        BLOCK_C=block_c,
        num_warps=num_warps,
    )
    return normed, new_residual
