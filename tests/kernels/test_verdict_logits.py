"""verdict_logits: two columns of the head's product, accumulated at least in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

OP = "verdict_logits"


def naive(hidden: Tensor, lm_head: Tensor, ids: Tensor) -> Tensor:
    rows = [[hidden[r].dot(lm_head[i]) for i in pair] for r, pair in enumerate(ids.tolist())]
    return torch.tensor(rows, dtype=hidden.dtype).view(-1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 2), (0, 8, 5), (7, 33, 50), (64, 256, 1000)])
def test_verdict_logits(op, check, shape, dtype) -> None:
    num_rows, hidden_size, vocab_size = shape
    hidden, lm_head = torch.randn(num_rows, hidden_size), torch.randn(vocab_size, hidden_size)
    ids = torch.randint(0, vocab_size, (num_rows, 2))
    got = check(op, naive, hidden.to(dtype), lm_head.to(dtype), ids)
    assert got.dtype == torch.float32


def test_unused_columns_are_not_read(op) -> None:
    lm_head = torch.full((9, 4), torch.nan)
    lm_head[3], lm_head[8] = 1.0, 2.0
    got = op(torch.ones(2, 4), lm_head, torch.tensor([[3, 8], [8, 3]]))
    assert got.tolist() == [[4.0, 8.0], [8.0, 4.0]]


def test_wrong_ids_are_refused(op) -> None:
    with pytest.raises(ValueError, match=r"ids: expected \[R, 2\]"):
        op(torch.ones(2, 4), torch.ones(9, 4), torch.zeros(2, 3, dtype=torch.int64))
