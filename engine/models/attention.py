"""How a layer attends: projections, rotary embedding, caches and the attention ops.

Self-attention writes this pass's keys and values into the paged cache before it reads them, so rows
of one pass see each other. Cross-attention only reads: its keys and values come from the image
alone and are made once, by `project_image`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stagebeam.engine.models.forward import CrossRows, ForwardBatch, PrefillAttention
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.weights import Weights
from stagebeam.kernels.registry import Ops


class SelfAttention:
    """Causal attention over the paged cache; q, k and v come from one product."""

    def __init__(self, spec: ModelSpec, weights: Weights, name: str, ops: Ops) -> None:
        self._ops = ops
        self._ranks = weights.ranks
        self._head_dim = spec.head_dim
        self._sm_scale = spec.head_dim**-0.5
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self._sizes = (q_size, kv_size, kv_size)
        self.qkv = weights.take_fused(
            (f"{name}.q_proj.weight", f"{name}.k_proj.weight", f"{name}.v_proj.weight"),
            self._sizes,
            spec.hidden_size,
        )
        self.out = weights.take(f"{name}.o_proj.weight", spec.hidden_size, q_size)

    def __call__(
        self, x: Tensor, batch: ForwardBatch, cache: tuple[Tensor, ...], cos_sin: Tensor
    ) -> Tensor:
        """[T, hidden_size] -> [T, hidden_size]; writes this pass's keys and values to `cache`."""
        q, k, v = (
            part.unflatten(1, (-1, self._head_dim))
            for part in F.linear(x, self.qkv).split(self._sizes, dim=1)
        )
        self._ops.rotary_(q, k, cos_sin, batch.positions)
        self._ops.store_kv_cache(k, v, *cache, batch.slot_mapping)
        return self._ranks.sum(F.linear(self._attend(q, batch, cache).flatten(1), self.out))

    def _attend(self, q: Tensor, batch: ForwardBatch, cache: tuple[Tensor, ...]) -> Tensor:
        a = batch.attention
        if isinstance(a, PrefillAttention):
            return self._ops.prefill_attention(
                q,
                *cache,
                a.cu_seqlens_q,
                a.seq_lens,
                a.block_tables,
                a.max_seqlen_q,
                a.max_seqlen_k,
                self._sm_scale,
            )
        return self._ops.branch_attention(
            q,
            *cache,
            a.group_offsets,
            a.row_group,
            a.trunk_tables,
            a.trunk_lens,
            a.tail_tables,
            a.tail_lens,
            a.max_group_rows,
            self._sm_scale,
        )


class CrossAttention:
    """Attention of text rows over their image's slot: normed queries and keys, no positions."""

    def __init__(self, spec: ModelSpec, weights: Weights, name: str, ops: Ops) -> None:
        self._ops = ops
        self._ranks = weights.ranks
        self._eps = spec.rms_norm_eps
        self._head_dim = spec.head_dim
        self._sm_scale = spec.head_dim**-0.5
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self._kv_sizes = (kv_size, kv_size)
        self.query = weights.take(f"{name}.q_proj.weight", q_size, spec.hidden_size)
        self.key_value = weights.take_fused(
            (f"{name}.k_proj.weight", f"{name}.v_proj.weight"), self._kv_sizes, spec.hidden_size
        )
        self.out = weights.take(f"{name}.o_proj.weight", spec.hidden_size, q_size)
        self.q_norm = weights.take(f"{name}.q_norm.weight", spec.head_dim)
        self.k_norm = weights.take(f"{name}.k_norm.weight", spec.head_dim)

    def __call__(self, x: Tensor, cross: CrossRows, slots: tuple[Tensor, ...]) -> Tensor:
        """[T, hidden_size] -> [T, hidden_size]; zeros for rows without an image."""
        q = self._head_norm(F.linear(x, self.query), self.q_norm)
        attended = self._ops.cross_attention(
            q,
            *slots,
            cross.group_offsets,
            cross.group_slots,
            cross.kv_lens,
            cross.max_group_rows,
            self._sm_scale,
        )
        return self._ranks.sum(F.linear(attended.flatten(1), self.out))

    def project_image(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [Lv, hidden_size] -> this layer's (k, v), each [Lv, num_kv_heads, head_dim]."""
        k, v = F.linear(features, self.key_value).split(self._kv_sizes, dim=1)
        return self._head_norm(k, self.k_norm), v.unflatten(1, (-1, self._head_dim))

    def _head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm of every head on its own: [T, heads * D] -> [T, heads, D]."""
        heads = x.reshape(-1, self._head_dim)
        return self._ops.rms_norm(heads, weight, self._eps).view(x.shape[0], -1, self._head_dim)
