"""The tensors of a cache, and how a head's keys or values become int8."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.engine.models.forward import KVLayers

SCALE_BYTES = 4  # of an int8 head


def zero_caches(
    num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> KVLayers:
    """A layer's keys and values of `shape` [.., num_kv_heads, head_dim] each; in int8 their scales
    [.., num_kv_heads] too."""

    def pair(size: tuple[int, ...], kind: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(size, dtype=kind, device=device) for _ in range(2))

    has_scales = dtype == torch.int8
    return [
        (*pair(shape, dtype), *(pair(shape[:-1], torch.float32) if has_scales else ()))
        for _ in range(num_layers)
    ]


def head_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one head's keys (or values) of one token."""
    return head_dim * dtype.itemsize + (SCALE_BYTES if dtype == torch.int8 else 0)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8, float32 scales without the last dimension): x is about q * scale, as csrc/cpu has it."""
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
    return (x * inverse.unsqueeze(-1)).round().to(torch.int8), largest / 127.0
