"""Mllama's vision tower: tiles of an image to features that the text layers attend to.

Follows HF's `MllamaVisionModel`. Its mask hides only pairs of two padding tokens, so the valid
tokens attend to everything and the padding tokens to the valid ones: tokens are put in that order
once and every layer runs two plain attentions, without a mask of tokens squared. Padded tiles are
computed like the others: their content reaches the valid ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stagebeam.engine.models.spec import VisionSpec
from stagebeam.engine.models.weights import Weights
from stagebeam.kernels.registry import Ops

_TOKENS_MULTIPLE = 8  # HF pads every tile's tokens to a multiple of this
_OUTER_NORM_EPS = 1e-5  # layernorm_pre and layernorm_post ignore the config's norm_eps


class LayerNorm:
    def __init__(self, weights: Weights, name: str, size: int, eps: float, ops: Ops) -> None:
        self._ops = ops
        self._eps = eps
        self.weight = weights.take(f"{name}.weight", size)
        self.bias = weights.take(f"{name}.bias", size)

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.layer_norm(x, self.weight, self.bias, self._eps)


class VisionLayer:
    """A pre-norm transformer layer; the global ones scale both branches by tanh gates."""

    def __init__(
        self, spec: VisionSpec, weights: Weights, name: str, ops: Ops, is_gated: bool
    ) -> None:
        hidden, inner, eps = spec.hidden_size, spec.intermediate_size, spec.norm_eps
        self._num_heads = spec.num_heads
        self._ranks = weights.ranks
        width = spec.num_heads * spec.head_dim
        self.attention_norm = LayerNorm(weights, f"{name}.input_layernorm", hidden, eps, ops)
        projections = tuple(f"{name}.self_attn.{part}_proj.weight" for part in "qkv")
        self.qkv = weights.take_fused(projections, (width, width, width), hidden)
        self.out = weights.take(f"{name}.self_attn.o_proj.weight", hidden, width)
        self.mlp_norm = LayerNorm(weights, f"{name}.post_attention_layernorm", hidden, eps, ops)
        self.up = weights.take(f"{name}.mlp.fc1.weight", inner, hidden)
        self.up_bias = weights.take(f"{name}.mlp.fc1.bias", inner)
        self.down = weights.take(f"{name}.mlp.fc2.weight", hidden, inner)
        self.down_bias = weights.take(f"{name}.mlp.fc2.bias", hidden)
        self.attention_gate = self.mlp_gate = None
        if is_gated:
            self.attention_gate = weights.take(f"{name}.gate_attn", 1).tanh_()
            self.mlp_gate = weights.take(f"{name}.gate_ffn", 1).tanh_()

    def __call__(self, x: Tensor, num_valid: int) -> Tensor:
        """x: [L, hidden_size], the valid tokens first."""
        x = x + _gated(self._attend(self.attention_norm(x), num_valid), self.attention_gate)
        inner = F.gelu(F.linear(self.mlp_norm(x), self.up, self.up_bias))
        outer = self._ranks.sum(F.linear(inner, self.down, self.down_bias))
        return x + _gated(outer, self.mlp_gate)

    def _attend(self, x: Tensor, n: int) -> Tensor:
        qkv = F.linear(x, self.qkv).unflatten(1, (3, self._num_heads, -1))
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)  # each [1, heads, L, head_dim]
        of_valid = F.scaled_dot_product_attention(q[:, :, :n], k, v)
        of_padding = F.scaled_dot_product_attention(q[:, :, n:], k[:, :, :n], v[:, :, :n])
        attended = torch.cat((of_valid, of_padding), dim=2)
        return self._ranks.sum(F.linear(attended[0].transpose(0, 1).flatten(1), self.out))


class VisionTower:
    """Patches, embeddings, local layers, global layers."""

    def __init__(self, spec: VisionSpec, weights: Weights, name: str, ops: Ops) -> None:
        self.spec = spec
        hidden, tiles = spec.hidden_size, spec.max_num_tiles
        ids, tokens = spec.num_aspect_ratios + 1, spec.tokens_per_tile
        patch = (spec.num_channels, spec.patch_size, spec.patch_size)
        self.patches = weights.take(f"{name}.patch_embedding.weight", hidden, *patch).flatten(1)
        self.class_embedding = weights.take(f"{name}.class_embedding", hidden)
        before, after = (
            f"{name}.pre_tile_positional_embedding",
            f"{name}.post_tile_positional_embedding",
        )
        self.tiles_before = weights.take(f"{before}.embedding.weight", ids, tiles * hidden)
        self.tiles_before_gate = weights.take(f"{before}.gate", 1).tanh_()
        position = f"{name}.gated_positional_embedding"
        self.position = weights.take(f"{position}.embedding", tokens, hidden)
        self.tile_position = weights.take(
            f"{position}.tile_embedding.weight", ids, tiles * tokens * hidden
        )
        self.position_gate = weights.take(f"{position}.gate", 1).tanh_()
        self.norm_before = LayerNorm(weights, f"{name}.layernorm_pre", hidden, _OUTER_NORM_EPS, ops)
        self.local_layers = [
            VisionLayer(spec, weights, f"{name}.transformer.layers.{i}", ops, is_gated=False)
            for i in range(spec.num_layers)
        ]
        self.norm_after = LayerNorm(weights, f"{name}.layernorm_post", hidden, _OUTER_NORM_EPS, ops)
        self.tiles_after = weights.take(f"{after}.embedding.weight", ids, tiles * hidden)
        self.tiles_after_gate = weights.take(f"{after}.gate", 1).tanh_()
        self.global_layers = [
            VisionLayer(spec, weights, f"{name}.global_transformer.layers.{i}", ops, is_gated=True)
            for i in range(spec.num_global_layers)
        ]

    def __call__(self, pixel_values: Tensor, aspect_ratio_id: int, num_tiles: int) -> Tensor:
        """The features of all tiles, padded ones too: [max_num_tiles, tokens_per_tile, output_dim].

        pixel_values:    [max_num_tiles, channels, image_size, image_size], valid tiles first
        aspect_ratio_id: 1-based tile layout; num_tiles: how many tiles are valid
        """
        x = self.norm_before(self._embed(pixel_values, aspect_ratio_id))
        x, order = _valid_first(x, num_tiles)
        num_valid = num_tiles * self.spec.tokens_per_tile

        states = []
        for layer in self.local_layers:
            x = layer(x, num_valid)
            states.append(x)
        tile_embedding = self.tiles_after_gate * self._of_tiles(self.tiles_after, aspect_ratio_id)
        x = self.norm_after(x) + tile_embedding.repeat_interleave(_padded(self.spec), dim=0)[order]
        for layer in self.global_layers:
            x = layer(x, num_valid)

        # HF stacks the intermediate states on the last axis: a channel's states lie side by side.
        between = torch.stack([states[i] for i in self.spec.intermediate_layers], dim=-1)
        features = torch.cat((x, between.flatten(1)), dim=1)
        unordered = torch.empty_like(features).index_copy_(0, order, features)
        per_tile = unordered.view(self.spec.max_num_tiles, _padded(self.spec), -1)
        return per_tile[:, : self.spec.tokens_per_tile]

    def _embed(self, pixel_values: Tensor, aspect_ratio_id: int) -> Tensor:
        """Patches, class token and positions: [max_num_tiles, tokens_per_tile, hidden_size]."""
        size = self.spec.patch_size
        pixels = pixel_values.to(self.patches.device, self.patches.dtype)
        # A convolution with stride = kernel size is a product over flattened patches.
        patches = pixels.unfold(2, size, size).unfold(3, size, size)  # [tiles, C, rows, cols, p, p]
        x = F.linear(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2), self.patches)
        x = x + self.tiles_before_gate * self._of_tiles(self.tiles_before, aspect_ratio_id)[:, None]
        x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + (1 - self.position_gate) * self.position
        tile_position = self._of_tiles(self.tile_position, aspect_ratio_id)
        return x + self.position_gate * tile_position.view(x.shape)

    def _of_tiles(self, table: Tensor, aspect_ratio_id: int) -> Tensor:
        return table[aspect_ratio_id].view(self.spec.max_num_tiles, -1)


def _padded(spec: VisionSpec) -> int:
    return -(-spec.tokens_per_tile // _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE


def _valid_first(x: Tensor, num_tiles: int) -> tuple[Tensor, Tensor]:
    """Pad every tile's tokens with zeros and put the valid tiles' real tokens first.

    x: [tiles, tokens, C] -> ([tiles * padded tokens, C], order), row i being flat token order[i]
    """
    tiles, tokens, channels = x.shape
    x = F.pad(x, (0, 0, 0, -tokens % _TOKENS_MULTIPLE))
    flat = torch.arange(tiles * x.shape[1], device=x.device).view(tiles, -1)
    order = torch.cat(
        (
            flat[:num_tiles, :tokens].flatten(),
            flat[:num_tiles, tokens:].flatten(),
            flat[num_tiles:].flatten(),
        )
    )
    return x.reshape(-1, channels)[order], order


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else gate * x
