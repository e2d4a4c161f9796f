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
    slots = slot_mapping.long()
    flat_k, flat_v = k_cache.view(-1, *key.shape[1:]), v_cache.view(-1, *key.shape[1:])
    if key.device.type != "cpu" or int(slots.min()) < 0:  # on a GPU, looking would be a wait
        # A skipped row repeats the row with the highest slot: the same bytes, so the order is free.
        # If all are skipped that slot is -1, and slot 0 gets back what it holds.
        last, donor = slots.max(0)
        rows = torch.where(slots >= 0, torch.arange(len(slots), device=key.device), donor)
        slots = slots[rows].clamp_(min=0)
        key = torch.where(last >= 0, key[rows], flat_k[slots])
        value = torch.where(last >= 0, value[rows], flat_v[slots])
    flat_k.index_copy_(0, slots, key)
    flat_v.index_copy_(0, slots, value)
