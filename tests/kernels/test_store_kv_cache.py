"""store_kv_cache is exact: the slots named, and no other byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

OP = "store_kv_cache"
HEADS = (2, 6)


def stored(cache: Tensor, new: Tensor, slots: list[int]) -> Tensor:
    flat = cache.clone().view(-1, *cache.shape[2:])
    for row, slot in zip(new, slots):
        if slot >= 0:
            flat[slot] = row
    return flat.view(cache.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "slots",
    [
        [],
        [0],
        [19],
        [3, 4, 5],  # over a block's end
        [7, -1, 0, 12],
        [-1, -1, 0],  # slot 0 is written beside skipped rows
        [-1],
        [-1, -1, -1],
        [19, 3, -1, 11, 0, -1, 16],
        list(range(20)),
    ],
)
def test_store(op, slots, dtype) -> None:
    key, value = (torch.randn(len(slots), *HEADS).to(dtype) for _ in range(2))
    k_cache, v_cache = (torch.randn(5, 4, *HEADS).to(dtype) for _ in range(2))
    expected = stored(k_cache, key, slots), stored(v_cache, value, slots)
    op(key, value, k_cache, v_cache, torch.tensor(slots, dtype=torch.int32))
    assert torch.equal(k_cache, expected[0])
    assert torch.equal(v_cache, expected[1])


def test_poison_is_neither_spread_nor_cleared(op) -> None:
    k_cache = torch.full((3, 4, *HEADS), torch.nan)
    v_cache = k_cache.clone()
    new = torch.randn(3, *HEADS)
    new[1] = torch.nan
    op(new, new, k_cache, v_cache, torch.tensor([5, -1, 6], dtype=torch.int32))
    for cache in (k_cache, v_cache):
        finite = cache.view(12, -1).isfinite().all(1)
        assert finite.nonzero().flatten().tolist() == [5, 6]


def test_it_takes_views_of_the_fused_projection(op) -> None:
    fused = torch.randn(3, 3, *HEADS)
    k_cache, v_cache = torch.zeros(2, 4, *HEADS), torch.zeros(2, 4, *HEADS)
    op(fused[:, 1], fused[:, 2], k_cache, v_cache, torch.tensor([1, 7, 2], dtype=torch.int32))
    assert torch.equal(k_cache.view(8, *HEADS)[[1, 7, 2]], fused[:, 1])
    assert torch.equal(v_cache.view(8, *HEADS)[[1, 7, 2]], fused[:, 2])


def test_other_heads_than_the_caches_are_refused(op) -> None:
    cache = torch.zeros(2, 4, 2, 6)
    new = torch.zeros(1, 3, 6)
    with pytest.raises(ValueError, match=r"k_cache: .* with Hkv=3 \(from key\)"):
        op(new, new, cache, cache, torch.tensor([0], dtype=torch.int32))
