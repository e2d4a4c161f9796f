"""PyTorch reference of copy_blocks; the package's docstring is the contract."""

from __future__ import annotations

from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def copy_blocks(kv_layers: list[tuple[Tensor, Tensor]], pairs: Tensor) -> None:
    check_shapes("pairs M 2", pairs)
    if not len(pairs):
        return
    source, destination = pairs.long().unbind(1)
    for caches in kv_layers:
        for cache in caches:
            cache.index_copy_(0, destination, cache.index_select(0, source))
