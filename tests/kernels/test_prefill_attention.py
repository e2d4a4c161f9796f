"""prefill_attention against row-by-row attention over dense keys, in a poisoned cache."""

from __future__ import annotations

import pytest
import torch
from prefill_rows import CASES, build

OP = "prefill_attention"

HEADS = [(1, 1, 2), (4, 4, 8), (6, 2, 7), (8, 2, 16), (8, 1, 5)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_prefill_attention(op, check, paged, lengths, heads) -> None:
    arguments, naive = build(paged, lengths, heads, 16, torch.float32)
    check(op, naive, *arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(op, check, paged, dtype) -> None:
    arguments, naive = build(paged, CASES["ragged"], (8, 2, 16), 16, dtype)
    assert check(op, naive, *arguments).dtype == dtype


@pytest.mark.parametrize("block_size", [1, 4, 32])
def test_other_block_sizes(op, check, paged, block_size) -> None:
    arguments, naive = build(paged, CASES["ragged"], (4, 2, 8), block_size, torch.float32)
    check(op, naive, *arguments)


def test_long_chunks_and_many_sequences(op, check, paged) -> None:
    """Longer than the reference's pieces, and raggeder than one tile takes."""
    lengths = [(1200, 1300), *[(1 + i % 5, 30 + i) for i in range(20)], (513, 513)]
    arguments, naive = build(paged, lengths, (2, 1, 4), 16, torch.float32)
    check(op, naive, *arguments)


def test_a_row_is_the_same_alone_in_a_chunk_and_in_a_batch(op, paged) -> None:
    arguments, _ = build(paged, [(40, 40), (7, 90)], (4, 2, 8), 16, torch.float32)
    q, k_cache, v_cache, _, _, tables, _, _, sm_scale = arguments
    whole = op(*arguments)
    for start in (0, 1, 15, 16, 17, 38, 39):
        for stop in (start + 1, 40):
            part = op(
                *(q[start:stop], k_cache, v_cache),
                torch.tensor([0, stop - start], dtype=torch.int32),
                torch.tensor([stop], dtype=torch.int32),
                tables[:1],
                *(stop - start, stop, sm_scale),
            )
            torch.testing.assert_close(part, whole[start:stop], rtol=0, atol=1e-6)


def test_an_empty_batch(op) -> None:
    cache, none = torch.zeros(2, 4, 1, 8), torch.zeros(0, dtype=torch.int32)
    tables = torch.zeros(0, 0, dtype=torch.int32)
    offsets = torch.zeros(1, dtype=torch.int32)
    got = op(torch.zeros(0, 2, 8), cache, cache, offsets, none, tables, 0, 0, 1.0)
    assert got.shape == (0, 2, 8)


def test_views_of_the_fused_projection(op, paged) -> None:
    arguments, _ = build(paged, [(9, 9)], (4, 2, 8), 4, torch.float32)
    fused = torch.randn(9, 64)
    q = fused[:, :32].view(9, 4, 8)
    assert torch.equal(op(q, *arguments[1:]), op(q.contiguous(), *arguments[1:]))
