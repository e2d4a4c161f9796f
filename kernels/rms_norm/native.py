"""rms_norm in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import floats
from stagebeam.kernels.shapes import check_shapes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check_shapes("x T C, weight C", x, weight)
    rows, scale = floats(x), floats(weight)
    out = torch.empty_like(rows)
    _cpu.rms_norm(rows.data_ptr(), scale.data_ptr(), eps, *rows.shape, out.data_ptr())
    return out.to(x.dtype)
