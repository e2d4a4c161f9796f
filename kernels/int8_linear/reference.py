"""PyTorch reference of int8_linear; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    check_shapes("x R K, weight N K, scale N", x, weight, scale)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) @ weight.to(wide).T * scale.to(wide)).to(x.dtype)
