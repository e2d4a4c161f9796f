"""Triton verdict_logits; the package's docstring is the contract. A program is one row's one token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_launch import launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable

MAX_BLOCK = 1024


@triton.jit
def verdict_logits_kernel(
    hidden_ptr,
    lm_head_ptr,
    ids_ptr,
    out_ptr,
    hidden_stride,
    lm_head_stride,
    NUM_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cell = tl.program_id(0).to(tl.int64)  # row * 2 + which of the two tokens
    hidden_row = hidden_ptr + (cell // 2) * hidden_stride
    column = lm_head_ptr + tl.load(ids_ptr + cell) * lm_head_stride
    products = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, NUM_COLUMNS, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        is_inside = offsets < NUM_COLUMNS
        x = tl.load(hidden_row + offsets, mask=is_inside, other=0.0).to(tl.float32)
        products += x * tl.load(column + offsets, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + cell, tl.sum(products, axis=0))


def verdict_logits(hidden: Tensor, lm_head: Tensor, ids: Tensor) -> Tensor:
    check_shapes("hidden R C, lm_head V C, ids R 2", hidden, lm_head, ids)
    assert hidden.stride(1) == lm_head.stride(1) == 1, "columns must be contiguous"
    out = torch.empty(ids.shape, dtype=torch.float32, device=hidden.device)
    launch(
        verdict_logits_kernel,
        (ids.numel(),),
        *(hidden, lm_head, ids.contiguous(), out, hidden.stride(0), lm_head.stride(0)),
        NUM_COLUMNS=hidden.shape[1],
        BLOCK=min(tile(hidden.shape[1]), MAX_BLOCK),
        num_warps=4,
    )
    return out
