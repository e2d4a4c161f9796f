"""layer_norm in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import floats
from stagebeam.kernels.shapes import check_shapes


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    check_shapes("x * C, weight C, bias C", x, weight, bias)
    rows, scale, shift = floats(x), floats(weight), floats(bias)
    out = torch.empty_like(rows)
    cols = len(weight)
    _cpu.layer_norm(
        *(rows.data_ptr(), scale.data_ptr(), shift.data_ptr()),
        *(eps, rows.numel() // cols, cols, out.data_ptr()),
    )
    return out.to(x.dtype)
