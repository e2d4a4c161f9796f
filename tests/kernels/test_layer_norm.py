"""layer_norm against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

OP = "layer_norm"


def naive(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (centred * centred).sum(-1, keepdim=True) / x.shape[-1]
    return centred / (variance + eps).sqrt() * weight + bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 2), (0, 8), (3, 7), (2, 5, 130), (2, 3, 4, 64), (16,)])
def test_layer_norm(op, check, shape, dtype) -> None:
    x = (torch.randn(shape) * 3 + 1).to(dtype)
    weight, bias = torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)
    check(op, naive, x, weight, bias, 1e-5)


def test_a_wrong_bias_is_refused(op) -> None:
    with pytest.raises(ValueError, match=r"bias: expected \[C\] with C=8 \(from x\)"):
        op(torch.randn(2, 3, 8), torch.randn(8), torch.randn(7), 1e-5)
