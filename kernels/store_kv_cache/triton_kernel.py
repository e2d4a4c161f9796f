"""Triton store_kv_cache; the package's docstring is the contract. Both caches in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_launch import launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable


@triton.jit
def store_kv_cache_kernel(
    key_ptr,
    value_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_mapping_ptr,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + row).to(tl.int64)
    if slot >= 0:
        heads = tl.arange(0, BLOCK_H)[:, None]
        dims = tl.arange(0, BLOCK_D)[None, :]
        is_inside = (heads < NUM_KV_HEADS) & (dims < HEAD_DIM)
        target = (slot * NUM_KV_HEADS + heads) * HEAD_DIM + dims
        key_offsets = row * key_row_stride + heads * key_head_stride + dims
        tl.store(
            k_cache_ptr + target, tl.load(key_ptr + key_offsets, mask=is_inside), mask=is_inside
        )
        value_offsets = row * value_row_stride + heads * value_head_stride + dims
        value = tl.load(value_ptr + value_offsets, mask=is_inside)
        tl.store(v_cache_ptr + target, value, mask=is_inside)


def store_kv_cache(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    check_shapes(
        "key T Hkv D, value T Hkv D, k_cache N B Hkv D, v_cache N B Hkv D, slot_mapping T",
        *(key, value, k_cache, v_cache, slot_mapping),
    )
    assert key.stride(2) == value.stride(2) == 1, "heads must be contiguous"
    assert k_cache.is_contiguous(), "k_cache must be contiguous"
    assert v_cache.is_contiguous(), "v_cache must be contiguous"
    num_rows, num_kv_heads, head_dim = key.shape
    launch(
        store_kv_cache_kernel,
        (num_rows,),
        *(key, value, k_cache, v_cache, slot_mapping),
        *(key.stride(0), key.stride(1), value.stride(0), value.stride(1)),
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_H=tile(num_kv_heads),
        BLOCK_D=tile(head_dim),
    )
