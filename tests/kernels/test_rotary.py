"""rotary_ in place, against plane rotations in float64 and, bit for bit, Hugging Face."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from stagebeam.kernels import registry

OP = "rotary_"
CASES = [(1, 1, 1, 2), (0, 4, 2, 8), (3, 3, 1, 6), (65, 8, 2, 64), (17, 9, 3, 10)]


def cos_sin_table(num_positions: int, head_dim: int) -> Tensor:
    angles = torch.outer(torch.arange(num_positions), 0.7 ** torch.arange(head_dim // 2))
    return torch.cat((angles.cos(), angles.sin()), 1)


def naive(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    out = x.clone()
    half = x.shape[-1] // 2
    for t, position in enumerate(positions.tolist()):
        for d in range(half):
            cos, sin = cos_sin[position, d].item(), cos_sin[position, half + d].item()
            a, b = x[t, :, d], x[t, :, half + d]
            out[t, :, d], out[t, :, half + d] = a * cos - b * sin, b * cos + a * sin
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_rotary(op, case, dtype) -> None:
    num_rows, num_heads, num_kv_heads, head_dim = case
    q = torch.randn(num_rows, num_heads, head_dim).to(dtype)
    k = torch.randn(num_rows, num_kv_heads, head_dim).to(dtype)
    cos_sin = cos_sin_table(50, head_dim)
    positions = torch.randint(0, 50, (num_rows,))
    exact = [naive(x.double(), cos_sin.double(), positions) for x in (q, k)]
    assert op(q, k, cos_sin, positions) is None
    roundings = {torch.float32: 1e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}[dtype]
    for got, wanted in zip((q, k), exact):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=roundings * 3)


def test_it_writes_through_views_of_the_fused_projection(op) -> None:
    fused = torch.randn(5, (4 + 2 + 2) * 8)
    q, k, v = fused.split((32, 16, 16), dim=1)
    expected = q.reshape(5, 4, 8).clone(), k.reshape(5, 2, 8).clone(), v.clone()
    arguments = cos_sin_table(9, 8), torch.tensor([0, 8, 3, 3, 1])
    op(*expected[:2], *arguments)
    op(q.view(5, 4, 8), k.view(5, 2, 8), *arguments)
    assert torch.equal(q, expected[0].flatten(1))
    assert torch.equal(k, expected[1].flatten(1))
    assert torch.equal(v, expected[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_rounds_as_hugging_face(dtype) -> None:
    q, k = torch.randn(31, 4, 16).to(dtype), torch.randn(31, 2, 16).to(dtype)
    cos_sin, positions = cos_sin_table(40, 16), torch.randperm(40)[:31]
    cos, sin = (part.repeat(1, 2).to(dtype)[None] for part in cos_sin[positions].chunk(2, 1))
    heads = (x.transpose(0, 1)[None] for x in (q, k))
    expected = [x[0].transpose(0, 1).clone() for x in apply_rotary_pos_emb(*heads, cos, sin)]
    registry.load(OP, "reference")(q, k, cos_sin, positions)
    assert torch.equal(q, expected[0])
    assert torch.equal(k, expected[1])


def test_position_zero_changes_nothing_and_lengths_stay(op) -> None:
    q = torch.randn(4, 2, 8)
    k = torch.randn(4, 1, 8)
    before = q.clone()
    op(q, k, cos_sin_table(6, 8), torch.tensor([0, 5, 2, 0]))
    assert torch.equal(q[[0, 3]], before[[0, 3]])
    assert math.isclose(float(q.norm()), float(before.norm()), rel_tol=1e-5)
