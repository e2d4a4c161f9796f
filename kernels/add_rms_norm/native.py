"""add_rms_norm in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import floats
from stagebeam.kernels.rms_norm.native import rms_norm
from stagebeam.kernels.shapes import check_shapes


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_shapes("x T C, residual T C", x, residual)
    rows, others = floats(x), floats(residual)
    out = torch.empty_like(rows)
    _cpu.add(rows.data_ptr(), others.data_ptr(), rows.numel(), out.data_ptr())
    new_residual = out.to(x.dtype)
    return rms_norm(new_residual, weight, eps), new_residual
