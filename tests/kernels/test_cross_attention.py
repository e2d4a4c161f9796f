"""cross_attention against row-by-row attention over each row's image slot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

OP = "cross_attention"
NUM_SLOTS = 4

# (slot, rows) a group
CASES = {
    "one row": [(2, 1)],
    "one image": [(1, 7)],
    "no image": [(-1, 3)],
    "some without an image": [(0, 2), (-1, 1), (3, 4), (-1, 2)],
    "an image twice": [(3, 2), (0, 1), (3, 5)],
    "an empty group": [(3, 2), (0, 0), (1, 2)],
    "ragged": [(0, 300), (1, 1), (2, 1), (-1, 1), (1, 2)],
}
SIZES = {
    # vision tokens, heads, KV heads, head_dim
    "tiny": (16, 4, 2, 8),
    "one token": (1, 1, 1, 2),
    "odd": (37, 6, 2, 7),
    "multi-query": (33, 8, 1, 5),
    "long": (1601, 4, 1, 48),  # more than the reference gathers
}


def naive(q, k_slots, v_slots, group_offsets, group_slots, kv_lens, max_rows, sm_scale) -> Tensor:
    out = torch.zeros_like(q)
    offsets = group_offsets.tolist()
    for slot, begin, end in zip(group_slots.tolist(), offsets, offsets[1:]):
        for r in range(begin, end):
            for h in range(q.shape[1] if slot >= 0 else 0):
                kv_head = h * k_slots.shape[2] // q.shape[1]
                key, value = (x[slot, : kv_lens[r], kv_head] for x in (k_slots, v_slots))
                out[r, h] = (key @ q[r, h] * sm_scale).softmax(0) @ value
    return out


def build(groups: list[tuple[int, int]], sizes: tuple[int, int, int, int], dtype: torch.dtype):
    num_tokens, num_heads, num_kv_heads, head_dim = sizes
    slots, counts = zip(*groups)
    k_slots, v_slots = (
        torch.randn(NUM_SLOTS, num_tokens, num_kv_heads, head_dim).to(dtype) for _ in range(2)
    )
    for slot in set(range(NUM_SLOTS)) - set(slots):
        k_slots[slot] = v_slots[slot] = torch.nan
    num_rows = sum(counts)
    kv_lens = torch.randint(1, num_tokens + 1, (num_rows,), dtype=torch.int32)
    row_slots = torch.tensor(slots).repeat_interleave(torch.tensor(counts))
    kv_lens[::3] = num_tokens
    kv_lens[row_slots < 0] = 0
    return (
        (torch.randn(num_rows, num_heads, head_dim) * 2).to(dtype),
        *(k_slots, v_slots),
        torch.tensor([0, *counts]).cumsum(0).int(),
        torch.tensor(slots, dtype=torch.int32),
        *(kv_lens, max(counts), head_dim**-0.5),
    )


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("groups", CASES.values(), ids=CASES.keys())
def test_cross_attention(op, check, groups, sizes) -> None:
    if sizes == SIZES["long"] and groups == CASES["ragged"]:
        groups = [(0, 30), *groups[1:]]
    check(op, naive, *build(groups, sizes, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [SIZES["tiny"], SIZES["long"]], ids=str)
def test_half_precision(op, check, sizes, dtype) -> None:
    assert check(op, naive, *build(CASES["an image twice"], sizes, dtype)).dtype == dtype


@pytest.mark.parametrize("sizes", [SIZES["tiny"], SIZES["long"]], ids=str)
def test_a_row_is_the_same_alone(op, sizes) -> None:
    arguments = build(CASES["some without an image"], sizes, torch.float32)
    q, k_slots, v_slots, offsets, slots, kv_lens, _, sm_scale = arguments
    whole = op(*arguments)
    one = torch.tensor([0, 1], dtype=torch.int32)
    for g, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:])):
        for r in range(begin, end):
            row = slice(r, r + 1)
            rest = slots[g : g + 1], kv_lens[row], 1, sm_scale
            single = op(q[row], k_slots, v_slots, one, *rest)
            torch.testing.assert_close(single, whole[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("groups", [[], [(1, 0)]], ids=["no group", "an empty group"])
def test_an_empty_batch(op, groups) -> None:
    cache = torch.zeros(2, 16, 1, 8)
    slots = torch.tensor([slot for slot, _ in groups], dtype=torch.int32)
    offsets = torch.zeros(len(groups) + 1, dtype=torch.int32)
    none = torch.zeros(0, dtype=torch.int32)
    assert op(torch.zeros(0, 2, 8), cache, cache, offsets, slots, none, 0, 1.0).shape == (0, 2, 8)
