"""copy_blocks is exact, in every layer, NaN and all."""

from __future__ import annotations

import pytest
import torch

from stagebeam.kernels.registry import resolve

OP = "copy_blocks"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("pairs", [[], [(0, 6)], [(2, 0), (2, 5), (2, 1), (6, 3)]])
def test_copy_blocks(op, pairs, num_layers, dtype) -> None:
    layers = [
        (torch.randn(7, 4, 2, 6).to(dtype), torch.randn(7, 4, 2, 6).to(dtype))
        for _ in range(num_layers)
    ]
    for caches in layers:
        caches[0][2, 3] = torch.nan  # a partial block's unused end
    expected = [[cache.clone() for cache in caches] for caches in layers]
    for caches in expected:
        for cache in caches:
            for source, destination in pairs:
                cache[destination] = cache[source]
    op(layers, torch.tensor(pairs, dtype=torch.int32).view(-1, 2))
    for got, wanted in zip(layers, expected):
        torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(got[1], wanted[1], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_blocks_of_heads_apart(backend) -> None:
    cache, scales = torch.randn(2, 7, 4, 6).movedim(0, 2), torch.randn(2, 7, 4).movedim(0, 2)
    expected = cache.clone(), scales.clone()
    for x in expected:
        x[5], x[0] = x[2], x[6]
    resolve(backend).copy_blocks(
        [(cache, scales)], torch.tensor([[2, 5], [6, 0]], dtype=torch.int32)
    )
    assert torch.equal(cache, expected[0])
    assert torch.equal(scales, expected[1])


def test_pairs_of_another_shape_are_refused(op) -> None:
    with pytest.raises(ValueError, match=r"pairs: expected \[M, 2\].*got shape \[3, 3\]"):
        op([], torch.zeros(3, 3, dtype=torch.int32))
