"""PyTorch reference of rotary_; the package's docstring is the contract."""

from __future__ import annotations

from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def rotary_(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    check_shapes("q T H D, k T Hkv D, cos_sin P D, positions T", q, k, cos_sin, positions)
    cos, sin = cos_sin.index_select(0, positions).to(q.dtype).unsqueeze(1).chunk(2, dim=-1)
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        first_sin, second_sin = first * sin, second * sin
        first.mul_(cos).sub_(second_sin)
        second.mul_(cos).add_(first_sin)
