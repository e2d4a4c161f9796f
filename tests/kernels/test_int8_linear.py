"""int8_linear against float64: every row count of a launch, ragged columns and depths."""

from __future__ import annotations

import pytest
import torch

OP = "int8_linear"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [1, 8, 33])
@pytest.mark.parametrize("depth", [16, 64, 272])
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 8, 9, 16, 17, 33])
def test_int8_linear(op, check, num_rows, depth, num_columns, dtype) -> None:
    x = torch.randn(num_rows, depth).to(dtype)
    weight = torch.randint(-128, 128, (num_columns, depth), dtype=torch.int8)
    scale = torch.rand(num_columns) / 128

    def naive(x, weight, scale):
        return torch.einsum("rk,nk,n->rn", x.double(), weight.double(), scale.double())

    check(op, naive, x, weight, scale)


def test_padding_rows_are_not_read(op) -> None:
    """A launch pads 3 rows to 16: what lies behind x must not matter."""
    memory = torch.full((16, 64), torch.nan, dtype=torch.bfloat16)
    memory[:3] = torch.randn(3, 64)
    weight = torch.randint(-128, 128, (5, 64), dtype=torch.int8)
    assert bool(op(memory[:3], weight, torch.ones(5)).isfinite().all())


def test_a_row_is_the_same_alone_and_in_a_batch(op) -> None:
    x = torch.randn(4, 128).half()
    weight = torch.randint(-128, 128, (24, 128), dtype=torch.int8)
    scale = torch.rand(24)
    together = op(x, weight, scale)
    for r in range(4):
        torch.testing.assert_close(op(x[r : r + 1], weight, scale), together[r : r + 1])


def test_a_scale_for_other_columns_is_refused(op) -> None:
    weight = torch.zeros(4, 16, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"scale: expected \[N\] with N=4"):
        op(torch.zeros(1, 16).half(), weight, torch.ones(5))
