"""PyTorch reference of merge_states; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    check_shapes("out_a R H D, lse_a R H, out_b R H D, lse_b R H", *(out_a, lse_a, out_b, lse_b))
    lse = torch.logaddexp(lse_a, lse_b)
    base = lse.clamp(min=torch.finfo(lse.dtype).min)  # -inf - -inf would be NaN
    share_a = (lse_a - base).exp_().unsqueeze(-1)
    share_b = (lse_b - base).exp_().unsqueeze(-1)
    # an empty set's out may hold anything, NaN too, and 0 * NaN is NaN
    part_a = torch.where(share_a > 0, out_a * share_a, 0)
    part_b = torch.where(share_b > 0, out_b * share_b, 0)
    return (part_a + part_b).to(out_a.dtype), lse
