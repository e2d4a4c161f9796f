"""Triton branch_attention; the package's docstring is the contract. Two launches: parts, then merge.

The work is one flat list of items of a fixed number of keys: first the trunks' (for all rows of a
group at once: its branches' query heads fill the rows of one tile, so a trunk is read once a group),
then every row's own tail. The list follows from the tables' shapes; items past a length end at once.
A row's arithmetic depends on its own keys alone, not on what shares its batch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.merge_states.triton_kernel import merge_splits
from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_launch import launch, must_upcast, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable
from stagebeam.kernels.triton_softmax import fold_keys, normalise
from stagebeam.kernels.triton_tiles import attention_tile

SPLIT = 256  # keys an item


@triton.jit(
    do_not_specialize=[
        "trunk_width",
        "tail_width",
        "num_trunk_items",
        "num_tiles",
        "num_trunk_splits",
        "num_tail_splits",
    ]
)
def branch_parts_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    parts_ptr,
    lse_ptr,
    group_offsets_ptr,
    row_group_ptr,
    trunk_tables_ptr,
    trunk_lens_ptr,
    tail_tables_ptr,
    tail_lens_ptr,
    q_row_stride,
    q_head_stride,
    trunk_width,
    tail_width,
    num_trunk_items,
    num_tiles,
    num_trunk_splits,
    num_tail_splits,
    sm_scale_log2,
    IS_SHARED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """parts [R, H, S, D] and lse [R, H, S] of the trunks' splits, then the tails'."""
    item = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_splits = num_trunk_splits + num_tail_splits
    if item < num_trunk_items:
        split = item % num_trunk_splits
        owner = item // num_trunk_splits
        if IS_SHARED:
            group = owner // num_tiles
            begin = tl.load(group_offsets_ptr + group) + owner % num_tiles * (
                BLOCK_M // HEADS_PER_KV
            )
            end = tl.load(group_offsets_ptr + group + 1)
        else:
            group = tl.load(row_group_ptr + owner)
            begin = owner
            end = owner + 1
        table_ptr = trunk_tables_ptr + group.to(tl.int64) * trunk_width
        length = tl.load(trunk_lens_ptr + group)
        first = split * SPLIT
    else:
        own_split = (item - num_trunk_items) % num_tail_splits
        begin = (item - num_trunk_items) // num_tail_splits
        end = begin + 1
        table_ptr = tail_tables_ptr + begin.to(tl.int64) * tail_width
        length = tl.load(tail_lens_ptr + begin)
        first = own_split * SPLIT
        split = num_trunk_splits + own_split
    stop = tl.minimum(length, first + SPLIT)

    m = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    rows = begin + m // HEADS_PER_KV
    is_row = (rows < end) & (m < BLOCK_M // HEADS_PER_KV * HEADS_PER_KV)
    heads = kv_head * HEADS_PER_KV + m % HEADS_PER_KV
    rows = rows.to(tl.int64)
    cells = (rows * NUM_KV_HEADS * HEADS_PER_KV + heads) * num_splits + split
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    if first < stop:
        q_offsets = (rows * q_row_stride + heads * q_head_stride)[:, None] + dims[None, :]
        is_cell = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        q = tl.load(q_ptr + q_offsets, mask=is_cell, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        for start in range(first, stop, BLOCK_N):
            tokens = start + tl.arange(0, BLOCK_N)
            is_used = tokens < stop
            blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=is_used, other=0).to(tl.int64)
            slots = blocks * BLOCK_SIZE + tokens % BLOCK_SIZE
            offsets = ((slots * NUM_KV_HEADS + kv_head) * HEAD_DIM)[:, None] + dims[None, :]
            is_read = is_used[:, None] & (dims < HEAD_DIM)[None, :]
            k = tl.load(k_cache_ptr + offsets, mask=is_read, other=0.0)
            v = tl.load(v_cache_ptr + offsets, mask=is_read, other=0.0)
            if UPCAST:
                k, v = k.to(tl.float32), v.to(tl.float32)
            top, total, out = fold_keys(q, k, v, is_used[None, :], top, total, out, sm_scale_log2)
        out, lse = normalise(top, total, out)
        tl.store(parts_ptr + (cells * HEAD_DIM)[:, None] + dims[None, :], out, mask=is_cell)
        tl.store(lse_ptr + cells, lse, mask=is_row)
    else:
        tl.store(lse_ptr + cells, top, mask=is_row)


def branch_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group_offsets: Tensor,
    row_group: Tensor,
    trunk_tables: Tensor,
    trunk_lens: Tensor,
    tail_tables: Tensor,
    tail_lens: Tensor,
    max_group_rows: int,
    sm_scale: float,
) -> Tensor:
    return _attend(
        *(q, k_cache, v_cache, group_offsets, row_group, trunk_tables, trunk_lens),
        *(tail_tables, tail_lens, max_group_rows, sm_scale),
        is_shared=True,
    )


def branch_attention_unshared(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group_offsets: Tensor,
    row_group: Tensor,
    trunk_tables: Tensor,
    trunk_lens: Tensor,
    tail_tables: Tensor,
    tail_lens: Tensor,
    max_group_rows: int,
    sm_scale: float,
) -> Tensor:
    """The same result with every row reading its trunk for itself: what sharing is timed against."""
    return _attend(
        *(q, k_cache, v_cache, group_offsets, row_group, trunk_tables, trunk_lens),
        *(tail_tables, tail_lens, max_group_rows, sm_scale),
        is_shared=False,
    )


def _attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group_offsets: Tensor,
    row_group: Tensor,
    trunk_tables: Tensor,
    trunk_lens: Tensor,
    tail_tables: Tensor,
    tail_lens: Tensor,
    max_group_rows: int,
    sm_scale: float,
    *,
    is_shared: bool,
) -> Tensor:
    check_shapes(
        "q R H D, k_cache N B Hkv D, v_cache N B Hkv D, row_group R, "
        "trunk_tables G Wt, trunk_lens G, tail_tables R W, tail_lens R",
        *(q, k_cache, v_cache, row_group, trunk_tables, trunk_lens, tail_tables, tail_lens),
    )
    check_shapes("group_offsets G1", group_offsets)
    assert q.stride(2) == 1, "q's heads must be contiguous"
    assert k_cache.is_contiguous(), "k_cache must be contiguous"
    assert v_cache.is_contiguous(), "v_cache must be contiguous"
    num_rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    num_groups, trunk_width = trunk_tables.shape
    tail_width = tail_tables.shape[1]
    heads_per_kv = num_heads // num_kv_heads
    rows_at_once = max_group_rows if is_shared else 1
    size = attention_tile(rows_at_once, heads_per_kv, q.dtype)
    num_tiles = triton.cdiv(rows_at_once, size.num_rows)
    num_trunk_splits = triton.cdiv(trunk_width * block_size, SPLIT)
    num_tail_splits = triton.cdiv(tail_width * block_size, SPLIT)
    num_splits = num_trunk_splits + num_tail_splits
    owners = num_groups * num_tiles if is_shared else num_rows
    num_trunk_items = owners * num_trunk_splits
    num_items = num_trunk_items + num_rows * num_tail_splits

    wide = q.new_empty(0, dtype=torch.float32)
    parts = wide.new_empty((num_rows, num_heads, num_splits, head_dim))
    lse = wide.new_empty((num_rows, num_heads, num_splits))
    out = torch.empty((num_rows, num_heads, head_dim), dtype=q.dtype, device=q.device)
    launch(
        branch_parts_kernel,
        (num_items, num_kv_heads),
        *(q, k_cache, v_cache, parts, lse, group_offsets, row_group),
        *(trunk_tables.contiguous(), trunk_lens, tail_tables.contiguous(), tail_lens),
        *(q.stride(0), q.stride(1), trunk_width, tail_width),
        *(num_trunk_items, num_tiles, num_trunk_splits, num_tail_splits),
        sm_scale * math.log2(math.e),
        IS_SHARED=is_shared,
        NUM_KV_HEADS=num_kv_heads,
        HEADS_PER_KV=heads_per_kv,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        SPLIT=SPLIT,
        BLOCK_M=size.block_m,
        BLOCK_N=size.block_n,
        BLOCK_D=tile(head_dim, 16),
        UPCAST=must_upcast(q.dtype),
        num_warps=size.num_warps,
        num_stages=3,
    )
    merge_splits(parts, lse, out)
    return out
