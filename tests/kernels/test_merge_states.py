"""merge_states: attention over two halves of the keys, merged, is attention over all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

OP = "merge_states"


def states(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """scores [R, H, K], v [K, D] -> out [R, H, D], lse [R, H]."""
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 2, 4), (5, 3, 7), (64, 8, 32)])
def test_two_halves_make_the_whole(op, shape, scale, dtype) -> None:
    num_rows, num_heads, head_dim = shape
    scores = torch.randn(num_rows, num_heads, 11, dtype=torch.float64) * scale
    v = torch.randn(11, head_dim, dtype=torch.float64)
    lse_dtype = torch.promote_types(dtype, torch.float32)
    parts = []
    for part in (slice(0, 4), slice(4, 11)):
        out, lse = states(scores[..., part], v[part])
        parts += [out.to(dtype), lse.to(lse_dtype)]
    out, lse = op(*parts)
    assert out.dtype == dtype
    assert lse.dtype == lse_dtype
    tolerance = {
        torch.float64: 1e-12,
        torch.float32: 1e-4,
        torch.bfloat16: 2.0**-5,
        torch.float16: 2.0**-8,
    }[dtype]
    exact_out, exact_lse = states(scores, v)
    torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-5)


def test_an_empty_set_changes_nothing_whatever_its_out_holds(op) -> None:
    out, lse = torch.randn(4, 2, 8), torch.randn(4, 2)
    nothing, never = torch.full((4, 2, 8), torch.nan), torch.full((4, 2), -torch.inf)
    for merged in (op(out, lse, nothing, never), op(nothing, never, out, lse)):
        torch.testing.assert_close(merged[0], out, rtol=0, atol=0)
        torch.testing.assert_close(merged[1], lse, rtol=0, atol=0)
    both_out, both_lse = op(nothing, never, nothing, never)
    assert torch.equal(both_out, torch.zeros_like(out))
    assert torch.equal(both_lse, never)


def test_the_order_of_the_two_does_not_matter(op) -> None:
    a, b = torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    lse_a, lse_b = torch.randn(6, 2) * 30, torch.randn(6, 2) * 30
    forth, back = op(a, lse_a, b, lse_b), op(b, lse_b, a, lse_a)
    assert torch.equal(forth[0], back[0])
    assert torch.equal(forth[1], back[1])


def test_unequal_shapes_are_refused(op) -> None:
    out, lse = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"lse_b: expected \[R, H\] with H=3"):
        op(out, lse, out, torch.zeros(2, 4))
