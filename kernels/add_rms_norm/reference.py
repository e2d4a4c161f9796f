"""PyTorch reference of add_rms_norm; the package's docstring is the contract."""

from __future__ import annotations

from torch import Tensor

from stagebeam.kernels.rms_norm.reference import rms_norm
from stagebeam.kernels.shapes import check_shapes


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_shapes("x T C, residual T C", x, residual)
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual
