"""The paged self-attention KV cache: block tensors and the pool that hands the blocks out.

Owns the tensors and applies the pool's copies to them; knows no score, no text and no policy.
Invariant: a block's content is read only through a sequence that owns it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stagebeam.bindings._core import BlockPool
from stagebeam.engine.memory.caches import zero_caches
from stagebeam.engine.models.forward import KVLayers
from stagebeam.kernels.registry import Ops


class KVCache:
    """`num_layers` pairs of [num_blocks, block_size, num_kv_heads, head_dim] and their pool."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
        has_heads_apart: bool = False,
    ) -> None:
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        self.layers: KVLayers = zero_caches(
            num_layers, shape, dtype, device, has_heads_apart=has_heads_apart
        )
        self.block_size = block_size
        self.pool = BlockPool(num_blocks, block_size)
        self._device = device
        self._ops = ops

    def append(self, seq: int, num_tokens: int) -> np.ndarray:
        """Extend a sequence within its reservation; returns its new slots, int32 [num_tokens]."""
        taken = self.pool.append(seq, num_tokens)
        assert taken is not None, "a sequence outgrew its reservation"
        slots, copies = taken
        self._copy(copies)
        return slots

    def append_one(self, seqs: np.ndarray) -> np.ndarray:
        """Extend each sequence by one token within its reservation; returns slots, int32 [num_seqs]."""
        taken = self.pool.append_one(seqs)
        assert taken is not None, "a branch outgrew its reservation"
        slots, copies = taken
        self._copy(copies)
        return slots

    def append_each(self, counts: Sequence[tuple[int, int]]) -> None:
        """Extend sequences by several tokens each, within their reservations; [(seq, num_tokens)]."""
        pairs = []
        for seq, num_tokens in counts:
            taken = self.pool.append(seq, num_tokens)
            assert taken is not None, "a branch outgrew its reservation"
            pairs.append(taken[1])
        self._copy(np.concatenate(pairs))

    def _copy(self, pairs: np.ndarray) -> None:
        if len(pairs):
            self._ops.copy_blocks(self.layers, torch.from_numpy(pairs).to(self._device))
