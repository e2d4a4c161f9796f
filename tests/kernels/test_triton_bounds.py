"""The check that every interpreted Triton test runs under: it refuses what is out of bounds."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
launching = pytest.importorskip("stagebeam.kernels.triton_launch", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    not launching.INTERPRETED, reason="runs in test_in_the_interpreter.py"
)


def copy_kernel():
    import triton.language as tl

    @triton.jit
    def copy(x_ptr, out_ptr, num_read, num_written, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offsets, mask=offsets < num_read, other=0.0)
        tl.store(out_ptr + offsets, x, mask=offsets < num_written)

    return copy


@pytest.mark.parametrize(
    ("num_read", "num_written", "message"),
    [(6, 6, None), (7, 6, "copy reads 1 of 7"), (6, 8, "copy writes 2 of 8"), (0, 0, None)],
)
def test_one_element_too_many_is_found(num_read, num_written, message) -> None:
    out = torch.zeros(6)
    arguments = (torch.randn(6), out, num_read, num_written)
    if message is None:
        launching.launch(copy_kernel(), (1,), *arguments, BLOCK=8)
    else:
        with pytest.raises(triton.runtime.errors.InterpreterError, match=message):
            launching.launch(copy_kernel(), (1,), *arguments, BLOCK=8)


def test_a_view_ends_where_its_last_element_does(triton_bounds) -> None:
    x = torch.zeros(4, 8)
    begin, end = triton_bounds.span(x[1:3, 2:5])
    assert begin - x.data_ptr() == (8 + 2) * 4
    assert end - x.data_ptr() == (2 * 8 + 5) * 4
