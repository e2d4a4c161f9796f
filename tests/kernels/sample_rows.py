"""Arguments of sample_step for the tests: rows with neutral defaults, and rows of every kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

INT32 = {"steps", "top_k", "states", "max_tokens"}
FLOAT32 = {"temperature", "top_p", "min_p"}


def rows(logits: Tensor, **given: Any) -> dict[str, Tensor]:
    """sample_step's arguments: neutral defaults, scalars spread over the rows."""
    num_rows, vocab_size = logits.shape
    values: dict[str, Any] = {
        "seeds": 7,
        "uids": torch.arange(num_rows),
        "steps": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "next_state": torch.zeros(1, vocab_size, dtype=torch.int16),
        "accept_tag": torch.full((1,), -1, dtype=torch.int32),
        "states": 0,
        "goal_masks": 0,
        "eos_ids": torch.empty(0, dtype=torch.int64),
        "ignore_eos": False,
        "max_tokens": 1000,
    }
    values.update(given)
    out = {"logits": logits}
    for name, value in values.items():
        dtype = torch.int32 if name in INT32 else torch.float32 if name in FLOAT32 else None
        if isinstance(value, Tensor) and dtype is None:
            out[name] = value
        else:
            out[name] = torch.as_tensor(value, dtype=dtype).expand(num_rows).contiguous()
    return out


def mixed_rows(num_rows: int, vocab_size: int) -> dict[str, Tensor]:
    """Every kind of filter in one batch, greedy rows too."""

    def pick(*options: float) -> Tensor:
        return torch.tensor(options)[torch.randint(len(options), (num_rows,))]

    return rows(
        torch.randn(num_rows, vocab_size) * 2,
        seeds=torch.randint(-(2**63), 2**63 - 1, (num_rows,)),
        uids=torch.randint(-(2**63), 2**63 - 1, (num_rows,)),
        steps=torch.randint(0, 500, (num_rows,)),
        temperature=pick(0.0, 0.6, 1.0, 2.0),
        top_k=pick(0, -1, 1, 7, 50, 200),
        top_p=pick(1.0, 0.9, 0.5),
        min_p=pick(0.0, 0.02),
    )
