"""merge_states in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import check_on_host
from stagebeam.kernels.shapes import check_shapes


def merge_states(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    check_shapes("out_a R H D, lse_a R H, out_b R H D, lse_b R H", *(out_a, lse_a, out_b, lse_b))
    check_on_host(out_a, lse_a, out_b, lse_b)
    wide = torch.promote_types(out_a.dtype, torch.float32)
    parts = [x.to(wide).contiguous() for x in (out_a, lse_a, out_b, lse_b)]
    out, lse = torch.empty_like(parts[0]), torch.empty_like(parts[1])
    _cpu.merge_states(
        *(x.data_ptr() for x in parts),
        *(lse.numel(), out.shape[-1], wide == torch.float64, out.data_ptr(), lse.data_ptr()),
    )
    return out.to(out_a.dtype), lse
