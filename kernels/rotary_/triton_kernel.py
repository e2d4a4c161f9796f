"""Triton rotary_; the package's docstring is the contract. Queries and keys in one launch.

Products and sums are rounded one by one, as the reference's, so fused multiply-adds are off.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast, rounded
from stagebeam.kernels.triton_launch import launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable


@triton.jit
def rotate_heads(
    x_ptr,
    head_stride,
    cos,
    sin,
    num_heads,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rotate one token's heads in place; cos and sin are [BLOCK_D] float32 of x's precision."""
    heads = tl.arange(0, BLOCK_H)[:, None]
    dims = tl.arange(0, BLOCK_D)[None, :]
    is_inside = (heads < num_heads) & (dims < HALF)
    pointers = x_ptr + heads * head_stride + dims
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.load(pointers, mask=is_inside, other=0.0).to(tl.float32)
    second = tl.load(pointers + HALF, mask=is_inside, other=0.0).to(tl.float32)
    cos, sin = cos[None, :], sin[None, :]
    first_cos = rounded(first * cos, dtype)
    first_sin = rounded(first * sin, dtype)
    second_cos = rounded(second * cos, dtype)
    second_sin = rounded(second * sin, dtype)
    tl.store(pointers, cast(first_cos - second_sin, dtype), mask=is_inside)
    tl.store(pointers + HALF, cast(second_cos + first_sin, dtype), mask=is_inside)


@triton.jit
def rotary_kernel(
    q_ptr,
    k_ptr,
    cos_sin_ptr,
    positions_ptr,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    angles = cos_sin_ptr + tl.load(positions_ptr + row) * 2 * HALF + dims
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    cos = rounded(tl.load(angles, mask=dims < HALF, other=0.0), dtype)
    sin = rounded(tl.load(angles + HALF, mask=dims < HALF, other=0.0), dtype)
    q_row, k_row = q_ptr + row * q_row_stride, k_ptr + row * k_row_stride
    rotate_heads(q_row, q_head_stride, cos, sin, NUM_HEADS, HALF, BLOCK_Q, BLOCK_D)
    rotate_heads(k_row, k_head_stride, cos, sin, NUM_KV_HEADS, HALF, BLOCK_K, BLOCK_D)


def rotary_(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    check_shapes("q T H D, k T Hkv D, cos_sin P D, positions T", q, k, cos_sin, positions)
    assert q.stride(2) == k.stride(2) == 1, "heads must be contiguous"
    assert cos_sin.is_contiguous(), "cos_sin must be contiguous"
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    launch(
        rotary_kernel,
        (num_rows,),
        *(q, k, cos_sin, positions, q.stride(0), q.stride(1), k.stride(0), k.stride(1)),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_Q=tile(num_heads),
        BLOCK_K=tile(num_kv_heads),
        BLOCK_D=tile(head_dim // 2),
        has_fp_fusion=False,
    )
