"""How the kernel tests reach a GPU, tried with the CPU in its place."""

from __future__ import annotations

import torch
from on_device import on_device


def test_copies_go_there_and_what_was_written_comes_back() -> None:
    cache, other = torch.zeros(3), torch.full((2,), torch.nan)
    seen = []

    def op(layers, value):
        seen.extend([layers[0][0], value])
        layers[0][0].add_(value.sum())
        return layers[0][0] * 2, 7

    result, number = on_device(op, "cpu")([(cache, other)], value=torch.ones(1).expand(4))
    assert seen[0].data_ptr() != cache.data_ptr()
    assert cache.tolist() == [4.0] * 3
    assert bool(other.isnan().all())
    assert result.tolist() == [8.0] * 3
    assert number == 7
