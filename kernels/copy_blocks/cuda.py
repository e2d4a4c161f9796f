"""copy_blocks by csrc/cuda/copy_blocks.h: all pairs, layers, keys and values in one launch."""

from __future__ import annotations

import ctypes

from torch import Tensor

from stagebeam.kernels import cuda_library
from stagebeam.kernels.shapes import check_shapes

why_unavailable = cuda_library.why_unavailable


def copy_blocks(kv_layers: list[tuple[Tensor, Tensor]], pairs: Tensor) -> None:
    check_shapes("pairs M 2", pairs)
    caches = [cache for layer in kv_layers for cache in layer]
    if not (caches and len(pairs)):
        return
    first = caches[0]
    assert all(c.shape == first.shape and c.dtype == first.dtype for c in caches), "unlike caches"
    block_bytes = first[0].numel() * first.element_size()
    cuda_library.call(
        "stagebeam_cuda_copy_blocks",
        cuda_library.pointers(caches),
        len(caches),
        cuda_library.pointer(pairs),
        len(pairs),
        ctypes.c_int64(block_bytes),
        on=first,
    )
