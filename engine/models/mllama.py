"""Mllama: Llama with gated cross-attention layers over a tiled vision tower (Llama 3.2 Vision).

Reads top to bottom like `MllamaForConditionalGeneration`. Holds weights only; the paged cache and
the image slots come with each call. A cross layer leaves rows without an image exactly as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stagebeam.engine.models.attention import CrossAttention
from stagebeam.engine.models.forward import CrossRows, ForwardBatch, KVLayers
from stagebeam.engine.models.layers import GatedMLP, Head, RMSNorm, SelfAttentionLayer
from stagebeam.engine.models.rope import rope_table
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.vision import VisionTower
from stagebeam.engine.models.weights import Weights
from stagebeam.kernels.registry import Ops


class CrossAttentionLayer:
    """Attention over the image and an MLP, each behind a tanh gate."""

    def __init__(self, spec: ModelSpec, weights: Weights, name: str, ops: Ops) -> None:
        self.input_norm = RMSNorm(spec, weights, f"{name}.input_layernorm", ops)
        self.attention = CrossAttention(spec, weights, f"{name}.cross_attn", ops)
        self.attention_gate = weights.take(f"{name}.cross_attn_attn_gate", 1).tanh_()
        self.mlp_norm = RMSNorm(spec, weights, f"{name}.post_attention_layernorm", ops)
        self.mlp = GatedMLP(spec, weights, f"{name}.mlp", ops)
        self.mlp_gate = weights.take(f"{name}.cross_attn_mlp_gate", 1).tanh_()

    def __call__(
        self,
        update: Tensor | None,
        residual: Tensor,
        cross: CrossRows,
        has_mlp: Tensor,
        slots: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """has_mlp: [T, 1], 1 where the MLP's output counts and 0 elsewhere, in the model's dtype."""
        x, residual = self.input_norm(update, residual)
        x, residual = self.mlp_norm(self.attention_gate * self.attention(x, cross, slots), residual)
        return self.mlp_gate * (has_mlp * self.mlp(x)), residual


class Mllama:
    """The vision tower, its projector and the text decoder."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops) -> None:
        assert spec.vision is not None, "Mllama has a vision tower"
        self.spec = spec
        self._ranks = weights.ranks
        self.vision = VisionTower(spec.vision, weights, "vision_model", ops)
        self.projector = weights.take(
            "multi_modal_projector.weight", spec.hidden_size, spec.vision.output_dim
        )
        self.projector_bias = weights.take("multi_modal_projector.bias", spec.hidden_size)
        self.embedding = weights.take_part(
            "language_model.embed_tokens.weight", spec.num_embeddings, spec.hidden_size
        )
        self.layers: list[SelfAttentionLayer | CrossAttentionLayer] = [
            (CrossAttentionLayer if i in spec.cross_attention_layers else SelfAttentionLayer)(
                spec, weights, f"language_model.layers.{i}", ops
            )
            for i in range(spec.num_layers + spec.num_cross_layers)
        ]
        self.head = Head(spec, weights, "language_model.norm", self.embedding, ops)
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
        caches, image_caches = iter(kv), iter(cross_kv)
        cross = batch.cross
        residual = self._ranks.embed(batch.token_ids, self.embedding)
        update = None
        if cross is not None:
            has_mlp = (cross.has_mlp & (cross.slots >= 0)).to(residual.dtype).unsqueeze(1)
        for layer in self.layers:
            if isinstance(layer, SelfAttentionLayer):
                update, residual = layer(update, residual, batch, next(caches), self.cos_sin)
            elif cross is not None:
                update, residual = layer(update, residual, cross, has_mlp, next(image_caches))
        return self.head.hidden(update, residual, batch.output_rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.logits(hidden)

    def verdict_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.head.verdict_logits(hidden, ids)

    def encode_image(
        self, pixel_values: Tensor, aspect_ratio_id: int, aspect_ratio_mask: Tensor
    ) -> KVLayers:
        """Every cross layer's (k, v) of one image; see `Model.encode_image`."""
        features = self.vision(pixel_values, aspect_ratio_id, int(aspect_ratio_mask.sum()))
        features = F.linear(features.flatten(0, 1), self.projector, self.projector_bias)
        return [
            layer.attention.project_image(features)
            for layer in self.layers
            if isinstance(layer, CrossAttentionLayer)
        ]
