"""branch_attention against row-by-row attention over dense keys: trunks, tails and poison."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from stagebeam.kernels.registry import resolve

OP = "branch_attention"
BLOCK = 4


class Group(NamedTuple):
    trunk_blocks: int
    tails: list[int]  # tokens of each row after the trunk


CASES = {
    "one row, no trunk": [Group(0, [1])],
    "one row, a trunk": [Group(3, [2])],
    "block boundary": [Group(1, [3, 4, 5]), Group(2, [7, 8, 9])],
    "no trunk among trunks": [Group(2, [3, 9]), Group(0, [6, 1]), Group(5, [1])],
    "nobody shares": [Group(0, [5]), Group(0, [12]), Group(0, [1])],
    "uneven groups": [Group(1, [1]), Group(7, [2, 30, 3, 4, 1, 9, 8]), Group(2, [4, 4])],
    "many": [Group(i % 4, [1 + (i * 7 + j) % 11 for j in range(1 + i % 3)]) for i in range(12)],
}
HEADS = [(1, 1, 2), (4, 4, 8), (6, 2, 7), (8, 2, 16), (8, 1, 5)]


def build(paged, groups, heads, dtype, block_size=BLOCK, pad=1):
    """The op's arguments, and the dense keys and values of every row."""
    num_heads, num_kv_heads, head_dim = heads
    rows = [(g, tail) for g, group in enumerate(groups) for tail in group.tails]
    lengths = [group.trunk_blocks * block_size for group in groups] + [tail for _, tail in rows]
    keys, values = (
        [torch.randn(length, num_kv_heads, head_dim).to(dtype) for length in lengths]
        for _ in range(2)
    )
    cache = paged(keys, values, block_size)
    num_groups, num_rows = len(groups), len(rows)
    trunks, tails = list(range(num_groups)), list(range(num_groups, len(lengths)))
    q = (torch.randn(num_rows, num_heads, head_dim) * 2).to(dtype)
    sizes = [len(group.tails) for group in groups]
    arguments = (
        *(q, cache.k_cache, cache.v_cache),
        torch.tensor([0, *sizes]).cumsum(0).int(),
        torch.tensor([g for g, _ in rows], dtype=torch.int32),
        cache.table(seqs=trunks, pad=pad),
        torch.tensor(lengths[:num_groups], dtype=torch.int32),
        cache.table(seqs=tails, pad=pad),
        torch.tensor(lengths[num_groups:], dtype=torch.int32),
        max(sizes),
        head_dim**-0.5,
    )
    dense = [
        (torch.cat((keys[g], keys[tail])), torch.cat((values[g], values[tail])))
        for (g, _), tail in zip(rows, tails)
    ]
    return arguments, dense


def naive_over(dense: list[tuple[Tensor, Tensor]]):
    def naive(q: Tensor, *arguments) -> Tensor:
        out = torch.zeros_like(q)
        for r, (key, value) in enumerate(dense):
            for h in range(q.shape[1]):
                kv_head = h * key.shape[1] // q.shape[1]
                scores = key[:, kv_head].double() @ q[r, h] * arguments[-1]
                out[r, h] = scores.softmax(0) @ value[:, kv_head].double()
        return out

    return naive


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("groups", CASES.values(), ids=CASES.keys())
def test_branch_attention(op, check, paged, groups, heads) -> None:
    arguments, dense = build(paged, groups, heads, torch.float32)
    check(op, naive_over(dense), *arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(op, check, paged, dtype) -> None:
    arguments, dense = build(paged, CASES["uneven groups"], (8, 2, 16), dtype)
    assert check(op, naive_over(dense), *arguments).dtype == dtype


@pytest.mark.parametrize("block_size", [1, 16])
def test_other_block_sizes(op, check, paged, block_size) -> None:
    groups = CASES["uneven groups"]
    arguments, dense = build(paged, groups, (4, 2, 8), torch.float32, block_size)
    check(op, naive_over(dense), *arguments)


def test_no_trunk_table_at_all(op, check, paged) -> None:
    arguments, dense = build(paged, CASES["nobody shares"], (4, 2, 8), torch.float32, pad=0)
    assert arguments[5].shape == (3, 0)
    check(op, naive_over(dense), *arguments)


def test_large_scores_do_not_overflow(op, check, paged) -> None:
    arguments, dense = build(paged, CASES["uneven groups"], (4, 2, 8), torch.float32)
    check(op, naive_over(dense), arguments[0] * 100, *arguments[1:])


def test_an_empty_batch(op) -> None:
    cache, none = torch.zeros(2, 4, 1, 8), torch.zeros(0, dtype=torch.int32)
    tables = torch.zeros(0, 0, dtype=torch.int32)
    offsets = torch.zeros(1, dtype=torch.int32)
    q = torch.zeros(0, 2, 8)
    assert op(q, cache, cache, offsets, none, tables, none, tables, none, 0, 1.0).shape == q.shape


def test_a_row_without_a_single_key_gives_zeros(op) -> None:
    cache = torch.full((2, 4, 1, 8), torch.nan)
    one = torch.zeros(1, dtype=torch.int32)
    tables = torch.full((1, 2), -1, dtype=torch.int32)
    offsets = torch.tensor([0, 1], dtype=torch.int32)
    q = torch.randn(1, 2, 8)
    got = op(q, cache, cache, offsets, one, tables, one, tables, one, 1, 1.0)
    assert torch.equal(got, torch.zeros_like(q))


def test_sharing_changes_nothing(op, paged) -> None:
    """The same branches with their shared blocks as a trunk, in the tails, and one by one."""
    arguments, _ = build(paged, [Group(3, [2, 6, 5])], (4, 2, 8), torch.float32, pad=0)
    q, k_cache, v_cache, offsets, row_group, trunk, trunk_lens, tails, tail_lens, most, s = (
        arguments
    )
    shared = op(*arguments)
    whole_tables = torch.cat((trunk.expand(3, -1), tails), 1)
    whole_lens = tail_lens + trunk_lens
    no_trunk = torch.zeros(1, 0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    flat = op(
        *(q, k_cache, v_cache, offsets, row_group),
        *(*no_trunk, whole_tables, whole_lens, most, s),
    )
    torch.testing.assert_close(flat, shared, rtol=0, atol=1e-6)
    alone = torch.tensor([0, 1], dtype=torch.int32)
    for r in range(3):
        row = slice(r, r + 1)
        single = op(
            *(q[row], k_cache, v_cache, alone, row_group[:1]),
            *(trunk, trunk_lens, tails[row], tail_lens[row], 1, s),
        )
        torch.testing.assert_close(single, shared[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trunk_blocks", [9, 75, 130])
def test_native_sums_do_not_depend_on_sharing(paged, dtype, trunk_blocks) -> None:
    """Bit for bit: trunks that end anywhere in a split, or are none at all."""
    op = resolve("native").branch_attention
    groups = [Group(trunk_blocks, [1, 40, 90, 300])]
    arguments, _ = build(paged, groups, (6, 2, 16), dtype, pad=0)
    q, k_cache, v_cache, offsets, row_group, trunk, trunk_lens, tails, tail_lens, most, s = (
        arguments
    )
    shared = op(*arguments)
    no_trunk = torch.zeros(1, 0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    tables = torch.cat((trunk.expand(4, -1), tails), 1)
    flat = op(
        *(q, k_cache, v_cache, offsets, row_group),
        *(*no_trunk, tables, tail_lens + trunk_lens, most, s),
    )
    assert torch.equal(flat, shared)
    alone = torch.tensor([0, 1], dtype=torch.int32)
    for r in range(4):
        row = slice(r, r + 1)
        single = op(
            *(q[row], k_cache, v_cache, alone, row_group[:1]),
            *(trunk, trunk_lens, tails[row], tail_lens[row], 1, s),
        )
        assert torch.equal(single, shared[row])


def test_views_of_the_fused_projection(op, paged) -> None:
    arguments, _ = build(paged, CASES["uneven groups"], (4, 2, 8), torch.float32)
    num_rows = len(arguments[0])
    q = torch.randn(num_rows, 64)[:, :32].view(num_rows, 4, 8)
    assert torch.equal(op(q, *arguments[1:]), op(q.contiguous(), *arguments[1:]))


def test_tables_of_another_batch_are_refused(op, paged) -> None:
    arguments, _ = build(paged, CASES["one row, a trunk"], (4, 2, 8), torch.float32)
    wrong = torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"tail_tables: expected \[R, W\] with R=1 \(from q\)"):
        op(*arguments[:7], wrong, *arguments[8:])
