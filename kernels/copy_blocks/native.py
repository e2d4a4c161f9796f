"""copy_blocks in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import exact, has_heads_apart
from stagebeam.kernels.shapes import check_shapes


def copy_blocks(kv_layers: list[tuple[Tensor, Tensor]], pairs: Tensor) -> None:
    check_shapes("pairs M 2", pairs)
    own = exact(pairs, torch.int32)
    for caches in kv_layers:
        for cache in caches:
            is_whole = cache.is_contiguous()
            if not (is_whole or has_heads_apart(cache)):
                raise ValueError(
                    "expected a cache that is contiguous or has its heads apart, got strides "
                    f"{cache.stride()}"
                )
            num_pieces = 1 if is_whole else cache.shape[2]
            piece_bytes = cache.numel() // num_pieces * cache.element_size()
            _cpu.copy_rows(
                *(cache.data_ptr(), piece_bytes // max(len(cache), 1), num_pieces, piece_bytes),
                *(own.data_ptr(), len(own)),
            )
