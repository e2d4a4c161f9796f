"""Triton cross_attention; the package's docstring is the contract.

The query heads of a group's rows fill the rows of a tile, so an image is read once a tile. Few rows
(decode) split the vision tokens over programs and merge the parts in a second launch; many rows
(prefill) are one launch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.merge_states.triton_kernel import merge_splits
from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast
from stagebeam.kernels.triton_launch import launch, must_upcast, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable
from stagebeam.kernels.triton_softmax import fold_keys, normalise
from stagebeam.kernels.triton_tiles import MIN_ROWS, attention_tile

SPLIT = 256  # vision tokens a program, where they are split
MAX_SPLIT_ROWS = 64  # more fill a GPU without splitting, and their parts would be large


@triton.jit(do_not_specialize=["num_tiles", "num_vision_tokens", "num_splits"])
def cross_attention_kernel(
    q_ptr,
    k_slots_ptr,
    v_slots_ptr,
    out_ptr,
    lse_ptr,
    group_offsets_ptr,
    group_slots_ptr,
    kv_lens_ptr,
    q_row_stride,
    q_head_stride,
    num_tiles,
    num_vision_tokens,
    num_splits,
    sm_scale_log2,
    IS_SPLIT: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out is parts [T, H, S, D] with lse [T, H, S] where IS_SPLIT, else the result [T, H, D]."""
    ROWS: tl.constexpr = BLOCK_M // HEADS_PER_KV
    group = tl.program_id(0) // num_tiles
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    end = tl.load(group_offsets_ptr + group + 1)
    begin = tl.load(group_offsets_ptr + group) + tl.program_id(0) % num_tiles * ROWS
    if begin < end:
        slot = tl.load(group_slots_ptr + group).to(tl.int64)
        m = tl.arange(0, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        rows = begin + m // HEADS_PER_KV
        is_row = (rows < end) & (m < ROWS * HEADS_PER_KV)
        heads = kv_head * HEADS_PER_KV + m % HEADS_PER_KV
        rows = rows.to(tl.int64)
        is_cell = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        kv_lens = tl.load(kv_lens_ptr + rows, mask=is_row, other=0)
        first = 0
        stop = tl.max(kv_lens, axis=0)
        if IS_SPLIT:
            first = split * SPLIT
            stop = tl.minimum(stop, first + SPLIT)
        stop = tl.where(slot < 0, 0, stop)
        q_offsets = (rows * q_row_stride + heads * q_head_stride)[:, None] + dims[None, :]
        q = tl.load(q_ptr + q_offsets, mask=is_cell, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        out = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        for start in range(first, stop, BLOCK_N):
            tokens = start + tl.arange(0, BLOCK_N)
            cells = (slot * num_vision_tokens + tokens) * NUM_KV_HEADS + kv_head
            offsets = (cells * HEAD_DIM)[:, None] + dims[None, :]
            is_read = (tokens < stop)[:, None] & (dims < HEAD_DIM)[None, :]
            k = tl.load(k_slots_ptr + offsets, mask=is_read, other=0.0)
            v = tl.load(v_slots_ptr + offsets, mask=is_read, other=0.0)
            if UPCAST:
                k, v = k.to(tl.float32), v.to(tl.float32)
            is_seen = (tokens[None, :] < kv_lens[:, None]) & (tokens < stop)[None, :]
            top, total, out = fold_keys(q, k, v, is_seen, top, total, out, sm_scale_log2)
        out, lse = normalise(top, total, out)
        out_cells = rows * NUM_KV_HEADS * HEADS_PER_KV + heads
        if IS_SPLIT:
            out_cells = out_cells * num_splits + split
            tl.store(lse_ptr + out_cells, lse, mask=is_row)
        out_offsets = (out_cells * HEAD_DIM)[:, None] + dims[None, :]
        tl.store(out_ptr + out_offsets, cast(out, out_ptr.dtype.element_ty), mask=is_cell)


def cross_attention(
    q: Tensor,
    k_slots: Tensor,
    v_slots: Tensor,
    group_offsets: Tensor,
    group_slots: Tensor,
    kv_lens: Tensor,
    max_group_rows: int,
    sm_scale: float,
) -> Tensor:
    check_shapes(
        "q T H D, k_slots N Lv Hkv D, v_slots N Lv Hkv D, kv_lens T, group_slots G",
        *(q, k_slots, v_slots, kv_lens, group_slots),
    )
    assert q.stride(2) == 1, "q's heads must be contiguous"
    assert k_slots.is_contiguous(), "k_slots must be contiguous"
    assert v_slots.is_contiguous(), "v_slots must be contiguous"
    num_rows, num_heads, head_dim = q.shape
    num_vision_tokens, num_kv_heads = k_slots.shape[1:3]
    heads_per_kv = num_heads // num_kv_heads
    size = attention_tile(max_group_rows, heads_per_kv, q.dtype)
    num_tiles = triton.cdiv(max_group_rows, size.num_rows)
    is_split = num_rows <= MAX_SPLIT_ROWS and num_vision_tokens > SPLIT
    num_splits = triton.cdiv(num_vision_tokens, SPLIT) if is_split else 1

    out = torch.empty((num_rows, num_heads, head_dim), dtype=q.dtype, device=q.device)
    parts, lse = out, out
    if is_split:
        wide = q.new_empty(0, dtype=torch.float32)
        parts = wide.new_empty((num_rows, num_heads, num_splits, head_dim))
        lse = wide.new_empty((num_rows, num_heads, num_splits))
    launch(
        cross_attention_kernel,
        (len(group_slots) * num_tiles, num_kv_heads, num_splits),
        *(q, k_slots, v_slots, parts, lse, group_offsets, group_slots, kv_lens),
        *(q.stride(0), q.stride(1), num_tiles, num_vision_tokens, num_splits),
        sm_scale * math.log2(math.e),
        IS_SPLIT=is_split,
        NUM_KV_HEADS=num_kv_heads,
        HEADS_PER_KV=heads_per_kv,
        HEAD_DIM=head_dim,
        SPLIT=SPLIT,
        BLOCK_M=size.block_m,
        BLOCK_N=size.block_n,
        BLOCK_D=tile(head_dim, 16),
        UPCAST=must_upcast(q.dtype),
        num_warps=size.num_warps,
        num_stages=3 if size.block_m == MIN_ROWS else 2,
    )
    if is_split:
        merge_splits(parts, lse, out)
    return out
