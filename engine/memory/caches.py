"""The tensors of a cache, and how a head's keys or values become int8."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.engine.models.forward import KVLayers

SCALE_BYTES = 4  # of an int8 head
_ALIGNMENT = 64  # bytes between which a layer's arrays begin


def zero_caches(
    num_layers: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    has_heads_apart: bool = False,
) -> KVLayers:
    """A layer's keys and values of `shape` [.., num_kv_heads, head_dim] each; in int8 their scales
    [.., num_kv_heads] too. On a CPU all lie in one mapping, in huge pages where the system has them:
    attention reads a little of every layer, more small pages than a processor remembers.

    With `has_heads_apart` (on a CPU) a head's tokens lie side by side, all tokens of one head before
    the next head's, and the tensors are strided: that is how the native program reads fastest.
    """
    kinds = [(shape, dtype), (shape, dtype)]
    if dtype == torch.int8:
        kinds += [(shape[:-1], torch.float32)] * 2
    if device.type != "cpu" or num_layers == 0:
        return [
            tuple(torch.zeros(size, dtype=kind, device=device) for size, kind in kinds)
            for _ in range(num_layers)
        ]
    if has_heads_apart:
        kinds = [((size[2], *size[:2], *size[3:]), kind) for size, kind in kinds]
    sizes = [math.prod(size) * kind.itemsize for size, kind in kinds]
    padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    memory = torch.from_numpy(_cpu.zeroed_bytes(num_layers * sum(padded)))
    pieces = iter(memory.split(padded * num_layers))
    caches = [
        [
            next(pieces)[:num_bytes].view(kind).view(size)
            for (size, kind), num_bytes in zip(kinds, sizes)
        ]
        for _ in range(num_layers)
    ]
    return [tuple(x.movedim(0, 2) if has_heads_apart else x for x in layer) for layer in caches]


def head_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one head's keys (or values) of one token."""
    return head_dim * dtype.itemsize + (SCALE_BYTES if dtype == torch.int8 else 0)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8, float32 scales without the last dimension): x is about q * scale, as csrc/cpu has it."""
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
    return (x * inverse.unsqueeze(-1)).round().to(torch.int8), largest / 127.0
