"""PyTorch reference of rms_norm; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    check_shapes("x T C, weight C", x, weight)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)
