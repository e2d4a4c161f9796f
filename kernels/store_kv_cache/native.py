"""store_kv_cache in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import cache_format, exact
from stagebeam.kernels.shapes import check_shapes


def store_kv_cache(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    check_shapes(
        "key T Hkv D, value T Hkv D, k_cache N B Hkv D, v_cache N B Hkv D, slot_mapping T",
        *(key, value, k_cache, v_cache, slot_mapping),
    )
    slots = exact(slot_mapping, torch.int32)
    for new, cache in ((key, k_cache), (value, v_cache)):
        cache_format(cache)
        rows = exact(new, cache.dtype)
        row_bytes = rows[0:1].numel() * rows.element_size()
        _cpu.scatter_rows(
            rows.data_ptr(), row_bytes, slots.data_ptr(), len(slots), cache.data_ptr()
        )
