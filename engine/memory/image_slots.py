"""Cross-attention KV by image content: an image is encoded once, whoever asks about it.

A slot holds one image's keys and values for every cross layer. Slots are reference-counted; those
nobody uses keep their content until room is needed, the least recently used going first.
"""

from __future__ import annotations

from collections import OrderedDict

import torch

from stagebeam.engine.memory.caches import quantized, zero_caches
from stagebeam.engine.models.forward import KVLayers


class ImageSlots:
    """`num_cross_layers` pairs of [num_slots, vision_tokens, num_kv_heads, head_dim]."""

    def __init__(
        self,
        *,
        num_slots: int,
        num_cross_layers: int,
        vision_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        has_heads_apart: bool = False,
    ) -> None:
        shape = (num_slots, vision_tokens, num_kv_heads, head_dim)
        self.layers: KVLayers = zero_caches(
            num_cross_layers, shape, dtype, device, has_heads_apart=has_heads_apart
        )
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._users: dict[int, int] = {}

    @property
    def num_in_use(self) -> int:
        return sum(1 for users in self._users.values() if users)

    def acquire(self, key: bytes) -> tuple[int, bool] | None:
        """Take a reference on the image's slot: (slot, whether it must be encoded first).

        None where every slot is in use by another image.
        """
        slot = self._slot_of.get(key)
        is_new = slot is None
        if slot is None:
            slot = self._free.pop() if self._free else self._evict()
            if slot is None:
                return None
            self._slot_of[key] = slot
            self._users[slot] = 0
        self._slot_of.move_to_end(key)
        self._users[slot] += 1
        return slot, is_new

    def store(self, slot: int, layers: KVLayers) -> None:
        """Write an encoded image, one (k, v) of [vision_tokens, num_kv_heads, head_dim] a layer."""
        for (k_slots, v_slots, *scales), (k, v) in zip(self.layers, layers, strict=True):
            if scales:
                (k, k_scales), (v, v_scales) = quantized(k), quantized(v)
                scales[0][slot].copy_(k_scales)
                scales[1][slot].copy_(v_scales)
            k_slots[slot].copy_(k)
            v_slots[slot].copy_(v)

    def release(self, slot: int) -> None:
        """Give a reference back; the content stays until room is needed."""
        assert self._users[slot] > 0, f"image slot {slot} was released more often than acquired"
        self._users[slot] -= 1

    def forget(self, slot: int) -> None:
        """Drop a slot whose encoding failed, so that nobody reads it."""
        assert self._users.pop(slot) <= 1, f"image slot {slot} is shared"
        self._slot_of = OrderedDict((k, s) for k, s in self._slot_of.items() if s != slot)
        self._free.append(slot)

    def _evict(self) -> int | None:
        for key, slot in self._slot_of.items():
            if self._users[slot] == 0:
                del self._slot_of[key]
                return slot
        return None
