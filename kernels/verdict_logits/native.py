"""verdict_logits in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import floats
from stagebeam.kernels.shapes import check_shapes


def verdict_logits(hidden: Tensor, lm_head: Tensor, ids: Tensor) -> Tensor:
    check_shapes("hidden R C, lm_head V C, ids R 2", hidden, lm_head, ids)
    rows, columns = floats(hidden), floats(lm_head[ids])  # columns [R, 2, C]
    out = rows.new_empty(len(rows), 2)
    _cpu.dot_rows(rows.data_ptr(), columns.data_ptr(), len(rows), 2, rows.shape[1], out.data_ptr())
    return out
