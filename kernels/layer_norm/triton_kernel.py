"""Triton layer_norm; the package's docstring is the contract."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.rms_norm.triton_kernel import row_tiles
from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast
from stagebeam.kernels.triton_launch import launch
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    eps,
    NUM_COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    is_column = columns < NUM_COLUMNS
    is_inside = (rows < num_rows)[:, None] & is_column[None, :]
    offsets = rows.to(tl.int64)[:, None] * NUM_COLUMNS + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=is_inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / NUM_COLUMNS
    centred = tl.where(is_column[None, :], x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / NUM_COLUMNS + eps)
    out = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + offsets, cast(out, out_ptr.dtype.element_ty), mask=is_inside)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    check_shapes("x * C, weight C, bias C", x, weight, bias)
    x = x.contiguous()
    num_columns = x.shape[-1]
    num_rows = x.numel() // num_columns if num_columns else 0
    out = torch.empty_like(x)
    block_t, block_c, num_warps = row_tiles(num_columns)
    launch(
        layer_norm_kernel,
        (triton.cdiv(num_rows, block_t),),
        *(x, weight, bias, out, num_rows, eps),
        NUM_COLUMNS=num_columns,
        BLOCK_T=block_t,
        BLOCK_C=block_c,
        num_warps=num_warps,
    )
    return out
