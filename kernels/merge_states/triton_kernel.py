"""Triton merge_states; the package's docstring is the contract.

`merge_splits` is the same merge over any number of sets, the last launch of split attention.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_cast import cast
from stagebeam.kernels.triton_launch import launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable

BLOCK_S = 8  # sets at a time


@triton.jit
def merge_states_kernel(
    out_a_ptr,
    lse_a_ptr,
    out_b_ptr,
    lse_b_ptr,
    out_ptr,
    lse_ptr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lse_a, lse_b = tl.load(lse_a_ptr + row), tl.load(lse_b_ptr + row)
    top = tl.maximum(lse_a, lse_b)
    base = tl.where(top == float("-inf"), 0.0, top)  # -inf - -inf would be NaN
    share_a, share_b = tl.exp(lse_a - base), tl.exp(lse_b - base)
    total = share_a + share_b
    lse = tl.where(total > 0, base + tl.log(total), float("-inf"))
    over = 1.0 / tl.where(total > 0, total, 1.0)
    dims = tl.arange(0, BLOCK_D)
    # an empty set's out may hold anything and is not loaded
    num_a, num_b = tl.where(share_a > 0, HEAD_DIM, 0), tl.where(share_b > 0, HEAD_DIM, 0)
    out_a = tl.load(out_a_ptr + row * HEAD_DIM + dims, mask=dims < num_a, other=0.0)
    out_b = tl.load(out_b_ptr + row * HEAD_DIM + dims, mask=dims < num_b, other=0.0)
    out = out_a.to(lse.dtype) * (share_a * over) + out_b.to(lse.dtype) * (share_b * over)
    tl.store(
        out_ptr + row * HEAD_DIM + dims, cast(out, out_ptr.dtype.element_ty), mask=dims < HEAD_DIM
    )
    tl.store(lse_ptr + row, lse)


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    check_shapes("out_a R H D, lse_a R H, out_b R H D, lse_b R H", *(out_a, lse_a, out_b, lse_b))
    parts = [part.contiguous() for part in (out_a, lse_a, out_b, lse_b)]
    num_rows, num_heads, head_dim = out_a.shape
    out, lse = torch.empty_like(parts[0]), torch.empty_like(parts[1])
    launch(
        merge_states_kernel,
        (num_rows * num_heads,),
        *(*parts, out, lse),
        HEAD_DIM=head_dim,
        BLOCK_D=tile(head_dim),
        num_warps=1,
        has_fp_fusion=False,  # so that the order of the two does not matter
    )
    return out, lse


@triton.jit(do_not_specialize=["num_splits"])
def merge_splits_kernel(
    parts_ptr,
    lse_ptr,
    out_ptr,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """A program is one head of one row; parts [R H, S, D] and lse [R H, S] -> out [R H, D]."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    top = float("-inf")
    total = 0.0
    out = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        splits = start + tl.arange(0, BLOCK_S)
        lse = tl.load(
            lse_ptr + row * num_splits + splits, mask=splits < num_splits, other=float("-inf")
        )
        new_top = tl.maximum(top, tl.max(lse, axis=0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        shares = tl.exp(lse - base)
        fade = tl.exp(top - base)
        is_read = (shares > 0)[:, None] & (dims < HEAD_DIM)[None, :]
        offsets = (row * num_splits + splits)[:, None] * HEAD_DIM + dims[None, :]
        parts = tl.load(parts_ptr + offsets, mask=is_read, other=0.0)
        out = out * fade + tl.sum(parts * shares[:, None], axis=0)
        total = total * fade + tl.sum(shares, axis=0)
        top = new_top
    out = out / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + row * HEAD_DIM + dims, cast(out, out_ptr.dtype.element_ty), mask=dims < HEAD_DIM
    )


def merge_splits(parts: Tensor, lse: Tensor, out: Tensor) -> None:
    """Merge the attention over disjoint sets of keys into `out`; zeros where every set is empty.

    parts: [R, H, S, D] float32, not read where lse is -inf; lse: [R, H, S] float32; out: [R, H, D]
    """
    num_rows, num_heads, num_splits, head_dim = parts.shape
    launch(
        merge_splits_kernel,
        (num_rows * num_heads,),
        *(parts, lse, out, num_splits),
        HEAD_DIM=head_dim,
        BLOCK_D=tile(head_dim),
        BLOCK_S=BLOCK_S,
        num_warps=2,
    )
