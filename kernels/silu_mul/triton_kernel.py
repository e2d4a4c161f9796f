"""Triton silu_mul; the package's docstring is the contract."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.triton_cast import cast, rounded
from stagebeam.kernels.triton_launch import launch
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable

BLOCK = 1024


@triton.jit
def silu_mul_kernel(
    gate_up_ptr, out_ptr, row_stride, NUM_COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < NUM_COLUMNS
    gate = tl.load(gate_up_ptr + row * row_stride + columns, mask=is_inside, other=0.0)
    up = tl.load(gate_up_ptr + row * row_stride + NUM_COLUMNS + columns, mask=is_inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = rounded(wide / (1.0 + tl.exp(-wide)), gate.dtype)
    out = cast(silu * up.to(tl.float32), gate.dtype)
    tl.store(out_ptr + row * NUM_COLUMNS + columns, out, mask=is_inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected [T, 2 I], got shape {list(gate_up.shape)}")
    assert gate_up.stride(1) == 1, "gate_up's columns must be contiguous"
    num_rows, num_columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_rows, num_columns), dtype=gate_up.dtype, device=gate_up.device)
    launch(
        silu_mul_kernel,
        (num_rows, triton.cdiv(num_columns, BLOCK)),
        *(gate_up, out, gate_up.stride(0)),
        NUM_COLUMNS=num_columns,
        BLOCK=BLOCK,
    )
    return out
