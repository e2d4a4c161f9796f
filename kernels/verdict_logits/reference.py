"""PyTorch reference of verdict_logits; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def verdict_logits(hidden: Tensor, lm_head: Tensor, ids: Tensor) -> Tensor:
    check_shapes("hidden R C, lm_head V C, ids R 2", hidden, lm_head, ids)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    columns = lm_head[ids].to(wide)  # [R, 2, C]
    return torch.bmm(columns, hidden.to(wide).unsqueeze(-1)).squeeze(-1)
