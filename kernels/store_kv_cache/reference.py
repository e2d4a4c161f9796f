"""PyTorch reference of store_kv_cache; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes


def store_kv_cache(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    check_shapes(
        "key T Hkv D, value T Hkv D, k_cache N B Hkv D, v_cache N B Hkv D, slot_mapping T",
        *(key, value, k_cache, v_cache, slot_mapping),
    )
    if not len(slot_mapping):
        return
    # A skipped row repeats the row with the highest slot: the same bytes, so the order is free.
    # If all are skipped that slot is -1, and slot 0 gets back what it holds.
    slots = slot_mapping.long()
    last, donor = slots.max(0)
    own = torch.arange(len(slot_mapping), device=key.device)
    rows = torch.where(slots >= 0, own, donor)
    slots = slots[rows].clamp_(min=0).long()
    for new, cache in ((key, k_cache), (value, v_cache)):
        flat = cache.view(-1, *cache.shape[2:])
        flat.index_copy_(0, slots, torch.where(last >= 0, new[rows], flat[slots]))
