"""Triton prefill_attention; the package's docstring is the contract. One launch, no lengths read.

A tile holds all query heads of one KV head for some consecutive rows of a sequence, so a key is read
once for them all. The grid follows from max_seqlen_q; tiles past a sequence's rows end at once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast
from stagebeam.kernels.triton_launch import launch, must_upcast, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable
from stagebeam.kernels.triton_softmax import fold_keys, normalise
from stagebeam.kernels.triton_tiles import attention_tile


@triton.jit(do_not_specialize=["table_width"])
def prefill_attention_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    out_ptr,
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    block_tables_ptr,
    q_row_stride,
    q_head_stride,
    table_width,
    sm_scale_log2,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK_M // HEADS_PER_KV
    kv_head = tl.program_id(1)
    seq = tl.program_id(2)
    end = tl.load(cu_seqlens_q_ptr + seq + 1)
    begin = tl.load(cu_seqlens_q_ptr + seq) + tl.program_id(0) * ROWS
    if begin < end:
        num_keys = tl.load(seq_lens_ptr + seq)
        table_ptr = block_tables_ptr + seq.to(tl.int64) * table_width
        m = tl.arange(0, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        rows = begin + m // HEADS_PER_KV
        is_row = (rows < end) & (m < ROWS * HEADS_PER_KV)
        heads = kv_head * HEADS_PER_KV + m % HEADS_PER_KV
        last_keys = num_keys - end + rows
        is_cell = is_row[:, None] & (dims < HEAD_DIM)[None, :]
        rows = rows.to(tl.int64)
        q_offsets = (rows * q_row_stride + heads * q_head_stride)[:, None] + dims[None, :]
        q = tl.load(q_ptr + q_offsets, mask=is_cell, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        out = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        stop = num_keys - end + tl.minimum(begin + ROWS, end)  # after the last row's own key
        for start in range(0, stop, BLOCK_N):
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
            is_seen = tokens[None, :] <= last_keys[:, None]
            top, total, out = fold_keys(q, k, v, is_seen, top, total, out, sm_scale_log2)
        out, _ = normalise(top, total, out)
        cells = (rows * NUM_KV_HEADS * HEADS_PER_KV + heads) * HEAD_DIM
        out = cast(out, out_ptr.dtype.element_ty)
        tl.store(out_ptr + cells[:, None] + dims[None, :], out, mask=is_cell)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    sm_scale: float,
) -> Tensor:
    check_shapes(
        "q T H D, k_cache N B Hkv D, v_cache N B Hkv D, seq_lens S, block_tables S W",
        *(q, k_cache, v_cache, seq_lens, block_tables),
    )
    assert q.stride(2) == 1, "q's heads must be contiguous"
    assert k_cache.is_contiguous(), "k_cache must be contiguous"
    assert v_cache.is_contiguous(), "v_cache must be contiguous"
    num_rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    heads_per_kv = num_heads // num_kv_heads
    out = torch.empty((num_rows, num_heads, head_dim), dtype=q.dtype, device=q.device)
    size = attention_tile(max_seqlen_q, heads_per_kv, q.dtype)
    num_tiles = triton.cdiv(max_seqlen_q, size.num_rows)
    launch(
        prefill_attention_kernel,
        (num_tiles, num_kv_heads, len(seq_lens)),
        *(q, k_cache, v_cache, out, cu_seqlens_q, seq_lens, block_tables.contiguous()),
        *(q.stride(0), q.stride(1), block_tables.shape[1], sm_scale * math.log2(math.e)),
        NUM_KV_HEADS=num_kv_heads,
        HEADS_PER_KV=heads_per_kv,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_M=size.block_m,
        BLOCK_N=size.block_n,
        BLOCK_D=tile(head_dim, 16),
        UPCAST=must_upcast(q.dtype),
        num_warps=size.num_warps,
        num_stages=2,
    )
    return out
