"""add_rms_norm: the new residual is the rounded sum, the normed value is rms_norm of it."""

from __future__ import annotations

import pytest
import torch

from stagebeam.kernels import registry

OP = "add_rms_norm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (0, 8), (3, 7), (64, 256)])
def test_add_rms_norm(op, shape, dtype) -> None:
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[1]).to(dtype)
    kept = x.clone(), residual.clone()
    normed, new_residual = op(x, residual, weight, 1e-6)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])
    assert torch.equal(new_residual, x + residual)
    expected = registry.load("rms_norm", "reference")(new_residual, weight, 1e-6)
    torch.testing.assert_close(normed, expected)


def test_unequal_shapes_are_refused(op) -> None:
    with pytest.raises(ValueError, match=r"residual: expected \[T, C\] with T=2 \(from x\)"):
        op(torch.randn(2, 8), torch.randn(3, 8), torch.randn(8), 1e-5)
