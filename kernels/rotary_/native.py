"""rotary_ in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import exact, floats
from stagebeam.kernels.shapes import check_shapes


def rotary_(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    check_shapes("q T H D, k T Hkv D, cos_sin P D, positions T", q, k, cos_sin, positions)
    angles, places = floats(cos_sin.to(q.dtype)), exact(positions, torch.int64)
    for x in (q, k):
        own = x.to(torch.float32)
        num_rows, num_heads, head_dim = own.shape
        _cpu.rotate(
            *(own.data_ptr(), own.stride(0), own.stride(1), num_rows, num_heads, head_dim),
            *(angles.data_ptr(), places.data_ptr()),
        )
        if own is not x:
            x.copy_(own)
