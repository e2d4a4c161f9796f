"""copy_blocks in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import exact
from stagebeam.kernels.shapes import check_shapes


def copy_blocks(kv_layers: list[tuple[Tensor, Tensor]], pairs: Tensor) -> None:
    check_shapes("pairs M 2", pairs)
    own = exact(pairs, torch.int32)
    for caches in kv_layers:
        for cache in caches:
            if not cache.is_contiguous():
                raise ValueError(f"expected a contiguous cache, got strides {cache.stride()}")
            block_bytes = cache[0].numel() * cache.element_size()
            _cpu.copy_rows(cache.data_ptr(), block_bytes, own.data_ptr(), len(own))
