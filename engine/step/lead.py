"""One rank leads, the others follow: every pass, copy and image of the leader, done alike by all.

The engine, its pool, its policies and its sampling live on rank 0. What touches the model or a cache
is sent to the others as a message first, so all ranks enter the same exchanges in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stagebeam.engine.memory.image_slots import ImageSlots
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.models.forward import ForwardBatch, KVLayers
from stagebeam.engine.models.loader import Model
from stagebeam.kernels.registry import Ops

FIRST = 0


def send(command: str, *arguments: Any) -> None:
    """Tell every follower what comes next."""
    dist.broadcast_object_list([(command, moved(arguments, torch.device("cpu")))], src=FIRST)


def share(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=FIRST)
    return values[0]


def moved(value: Any, device: torch.device) -> Any:
    """A message with its tensors on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        )
    return value


class LeadModel:
    """The leader's part of a model, whose passes the followers run too."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.spec = model.spec

    @property
    def device(self) -> torch.device:
        return self._model.device

    def forward(self, batch: ForwardBatch, kv: KVLayers, cross_kv: KVLayers) -> Tensor:
        send("forward", batch)
        return self._model.forward(batch, kv, cross_kv)

    def logits(self, hidden: Tensor) -> Tensor:
        send("logits", hidden)
        return self._model.logits(hidden)

    def verdict_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """From whole logits: the head is in parts."""
        return self.logits(hidden).gather(1, ids)

    def encode_image(
        self, pixel_values: Tensor, aspect_ratio_id: int, aspect_ratio_mask: Tensor
    ) -> KVLayers:
        send("encode_image", pixel_values, aspect_ratio_id, aspect_ratio_mask)
        return self._model.encode_image(pixel_values, aspect_ratio_id, aspect_ratio_mask)


class LeadImageSlots(ImageSlots):
    """Image slots that every rank fills with its own heads."""

    def store(self, slot: int, layers: KVLayers) -> None:
        send("store", slot)
        super().store(slot, layers)


def leading_ops(ops: Ops) -> Ops:
    """The ops of the leader's cache: its block copies are everybody's."""
    copy_blocks: Callable[..., None] = ops.copy_blocks

    def copy_everywhere(kv_layers: KVLayers, pairs: Tensor) -> None:
        send("copy_blocks", pairs)
        copy_blocks(kv_layers, pairs)

    return replace(ops, copy_blocks=copy_everywhere)


@torch.inference_mode()
def follow(model: Model, kv_cache: KVCache, image_slots: ImageSlots, ops: Ops) -> None:
    """Do what rank 0 sends until it sends "stop"."""
    device = kv_cache.layers[0][0].device
    encoded: KVLayers = []
    while True:
        command, arguments = share(None)
        arguments = moved(arguments, device)
        match command:
            case "forward":
                (batch,) = arguments
                model.forward(batch, kv_cache.layers, image_slots.layers)
            case "logits":
                model.logits(*arguments)
            case "encode_image":
                encoded = model.encode_image(*arguments)
            case "store":
                (slot,) = arguments
                ImageSlots.store(image_slots, slot, encoded)
            case "copy_blocks":
                ops.copy_blocks(kv_cache.layers, *arguments)
            case "stop":
                return
