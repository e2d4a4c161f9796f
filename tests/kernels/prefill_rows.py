"""Cases of prefill_attention for its tests: ragged sequences in a poisoned cache, and their oracle."""

from __future__ import annotations

import torch
from torch import Tensor

# (query rows, cached tokens in all) a sequence
CASES = {
    "one token": [(1, 1)],
    "one decode row": [(1, 17)],
    "whole prompt": [(23, 23)],
    "chunk on a prefix": [(5, 40)],
    "block boundary": [(15, 15), (16, 16), (17, 17), (1, 15), (1, 16), (1, 17), (16, 32), (3, 33)],
    "ragged": [(1, 70), (64, 64), (2, 3), (37, 101), (1, 1)],
    "no rows in the middle": [(3, 9), (0, 5), (4, 4), (0, 0)],
}


def naive_over(keys: list[Tensor], values: list[Tensor], lengths: list[tuple[int, int]]):
    """The oracle: every row on its own, over its sequence's dense keys and values."""

    def naive(q: Tensor, *arguments) -> Tensor:
        sm_scale = arguments[-1]
        rows, out = iter(q), []
        for key, value, (num_rows, num_keys) in zip(keys, values, lengths):
            for position in range(num_keys - num_rows, num_keys):
                row, seen = next(rows), position + 1
                for h, head in enumerate(row):
                    kv_head = h * key.shape[1] // len(row)
                    scores = key[:seen, kv_head].double() @ head * sm_scale
                    out.append(scores.softmax(0) @ value[:seen, kv_head].double())
        return torch.stack(out).view(q.shape) if out else torch.empty_like(q)

    return naive


def build(paged, lengths, heads, block_size, dtype):
    num_heads, num_kv_heads, head_dim = heads
    keys, values = (
        [torch.randn(num_keys, num_kv_heads, head_dim).to(dtype) for _, num_keys in lengths]
        for _ in range(2)
    )
    cache = paged(keys, values, block_size)
    num_rows = [rows for rows, _ in lengths]
    q = (torch.randn(sum(num_rows), num_heads, head_dim) * 2).to(dtype)
    arguments = (
        *(q, cache.k_cache, cache.v_cache),
        torch.tensor([0, *num_rows]).cumsum(0).int(),
        torch.tensor([num_keys for _, num_keys in lengths], dtype=torch.int32),
        cache.table(pad=2),
        max(num_rows),
        max(num_keys for _, num_keys in lengths),
        head_dim**-0.5,
    )
    return arguments, naive_over(keys, values, lengths)
