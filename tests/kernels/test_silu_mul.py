"""silu_mul against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

OP = "silu_mul"


def naive(gate_up: Tensor) -> Tensor:
    gate, up = gate_up[:, : gate_up.shape[1] // 2], gate_up[:, gate_up.shape[1] // 2 :]
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 2), (0, 8), (3, 14), (65, 130), (4, 1024)])
def test_silu_mul(op, check, shape, dtype) -> None:
    check(op, naive, (torch.randn(shape) * 4).to(dtype))


def test_large_values_stay_finite(op) -> None:
    got = op(torch.tensor([[-1e4, 1e4, 2.0, 3.0]]))
    assert torch.equal(got, torch.tensor([[0.0, 3e4]]))


def test_an_odd_width_is_refused(op) -> None:
    with pytest.raises(ValueError, match=r"gate_up: expected \[T, 2 I\], got shape \[3, 5\]"):
        op(torch.randn(3, 5))
