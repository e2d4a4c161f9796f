"""PyTorch reference of silu_mul; the package's docstring is the contract."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    num_columns = gate_up.shape[-1]
    if gate_up.dim() != 2 or num_columns % 2:
        raise ValueError(f"gate_up: expected [T, 2 I], got shape {list(gate_up.shape)}")
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
