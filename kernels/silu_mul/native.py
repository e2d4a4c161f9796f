"""silu_mul in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import floats


def silu_mul(gate_up: Tensor) -> Tensor:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected [T, 2 I], got shape {list(gate_up.shape)}")
    rows = floats(gate_up)
    out = rows.new_empty(len(rows), rows.shape[1] // 2)
    _cpu.silu_mul(rows.data_ptr(), *out.shape, out.data_ptr())
    return out.to(gate_up.dtype)
