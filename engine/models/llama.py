"""Llama: the text-only decoder (SmolLM2, TinyLlama, Llama 2, 3, 3.1 and 3.2).

Reads top to bottom like `LlamaForCausalLM`. Holds weights only; the caches come with each call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.engine.errors import ImageError
from stagebeam.engine.models.forward import ForwardBatch, KVLayers
from stagebeam.engine.models.layers import Head, SelfAttentionLayer
from stagebeam.engine.models.rope import rope_table
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.weights import Weights
from stagebeam.kernels.registry import Ops


class Llama:
    """A stack of self-attention layers."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops) -> None:
        self.spec = spec
        self._ranks = weights.ranks
        self.embedding = weights.take_part("embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        self.layers = [
            SelfAttentionLayer(spec, weights, f"layers.{i}", ops) for i in range(spec.num_layers)
        ]
        self.head = Head(spec, weights, "norm", self.embedding, ops)
        self.cos_sin = rope_table(
            spec.rope, spec.head_dim, spec.max_position_embeddings, self.embedding.device
        )

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def lm_head(self) -> Tensor:
        return self.head.lm_head

    def forward(self, batch: ForwardBatch, kv: KVLayers, cross_kv: KVLayers) -> Tensor:
        """Run the rows and write their keys and values; see `Model.forward`."""
        assert batch.cross is None, "a text-only model was given rows with an image"
        residual = self._ranks.embed(batch.token_ids, self.embedding)
        update = None
        for layer, cache in zip(self.layers, kv, strict=True):
            update, residual = layer(update, residual, batch, cache, self.cos_sin)
        return self.head.hidden(update, residual, batch.output_rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.logits(hidden)

    def verdict_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.head.verdict_logits(hidden, ids)

    def encode_image(
        self, pixel_values: Tensor, aspect_ratio_id: int, aspect_ratio_mask: Tensor
    ) -> KVLayers:
        raise ImageError("this model is text-only and cannot see an image; ask without one")
