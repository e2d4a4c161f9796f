"""rms_norm against its formula in float64 and, bit for bit, Hugging Face's LlamaRMSNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from stagebeam.kernels import registry

OP = "rms_norm"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def naive(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = [row / (row.dot(row) / len(row) + eps).sqrt() * weight for row in x]
    return torch.stack(rows) if rows else torch.empty_like(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (0, 8), (3, 7), (5, 130), (64, 256), (2, 4097)])
def test_rms_norm(op, check, shape, dtype) -> None:
    x = (torch.randn(shape) * torch.tensor([0.1, 30.0])[torch.arange(shape[0]) % 2, None]).to(dtype)
    check(op, naive, x, torch.randn(shape[1]).to(dtype), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_rounds_as_hugging_face(dtype) -> None:
    norm = LlamaRMSNorm(130, eps=1e-5).to(dtype)
    norm.weight.data.normal_()
    x = torch.randn(33, 130).to(dtype)
    reference = registry.load(OP, "reference")
    assert torch.equal(reference(x, norm.weight.data, 1e-5), norm(x))


def test_rows_do_not_see_each_other_and_zero_is_fine(op) -> None:
    x = torch.randn(9, 64)
    x[3] = 0
    weight = torch.randn(64)
    whole = op(x, weight, 1e-5)
    assert torch.equal(whole[3], torch.zeros(64))
    for i in range(9):
        torch.testing.assert_close(op(x[i : i + 1], weight, 1e-5)[0], whole[i])


def test_a_wrong_weight_is_refused(op) -> None:
    with pytest.raises(ValueError, match=r"weight: expected \[C\] with C=8 \(from x\)"):
        op(torch.randn(2, 8), torch.randn(7), 1e-5)
