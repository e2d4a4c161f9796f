"""What a checkpoint's configuration means to the engine: sizes, ids and bytes.

Plain data without torch, read once from the HF configs; every default that HF leaves out of a
config.json is already filled in. `num_layers` counts the self-attention layers, which own the paged
KV cache; the cross-attention layers in between are counted by `num_cross_layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stagebeam.engine.errors import CheckpointError

Architecture = Literal["mllama", "llama"]
RopeKind = Literal["default", "linear", "dynamic", "llama3"]

# HF allocates this many embedding rows after the vocabulary for the image token.
NUM_IMAGE_EMBEDDINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding parameters, as HF's `rope_parameters` spell them."""

    kind: RopeKind
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """The tiled vision tower.

    num_aspect_ratios:   ids 1 .. n are tile layouts, 0 is HF's padding
    intermediate_layers: local layers whose output joins the features, in this order
    output_dim:          hidden_size * (1 + number of intermediate layers)
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    num_layers: int
    num_global_layers: int
    num_channels: int
    image_size: int
    patch_size: int
    max_num_tiles: int
    num_aspect_ratios: int
    intermediate_layers: tuple[int, ...]
    output_dim: int
    norm_eps: float

    @property
    def tokens_per_tile(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def num_parameters(self) -> int:
        hidden, inner, tiles = self.hidden_size, self.intermediate_size, self.max_num_tiles
        ids = self.num_aspect_ratios + 1
        layer = 4 * hidden * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden
        embeddings = (
            self.num_channels * self.patch_size**2 * hidden
            + hidden
            + (self.tokens_per_tile * hidden + ids * tiles * self.tokens_per_tile * hidden + 1)
            + 2 * (ids * tiles * hidden + 1)
        )
        layers = self.num_layers * layer + self.num_global_layers * (layer + 2)
        return embeddings + 4 * hidden + layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A checkpoint's sizes and ids.

    num_layers:             self-attention layers
    cross_attention_layers: places of the cross-attention layers among all layers
    image_token_id:         None without a vision tower; never below vocab_size in HF's Mllama, the
                            embedding has extra rows for it
    has_tied_head:          the head is the embedding's first vocab_size rows
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    has_tied_head: bool
    eos_ids: tuple[int, ...]
    bos_id: int | None
    cross_attention_layers: tuple[int, ...] = ()
    image_token_id: int | None = None
    vision: VisionSpec | None = None

    @property
    def num_cross_layers(self) -> int:
        return len(self.cross_attention_layers)

    @property
    def num_embeddings(self) -> int:
        return self.vocab_size + (NUM_IMAGE_EMBEDDINGS if self.architecture == "mllama" else 0)

    @property
    def max_num_tiles(self) -> int:
        return self.vision.max_num_tiles if self.vision else 0

    @property
    def tokens_per_tile(self) -> int:
        return self.vision.tokens_per_tile if self.vision else 0

    @property
    def vision_tokens(self) -> int:
        """Tokens of a padded image: what a cross-attention slot holds."""
        return self.max_num_tiles * self.tokens_per_tile

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Paged KV cache bytes a token takes, over all self-attention layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes

    def image_slot_bytes(self, dtype_bytes: int) -> int:
        """Cross-attention KV bytes of one image, over all cross layers."""
        per_token = 2 * self.num_cross_layers * self.num_kv_heads * self.head_dim
        return self.vision_tokens * per_token * dtype_bytes

    @property
    def num_decode_parameters(self) -> int:
        """Weights that a decode step with an image reads: the text layers and the head."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * q_size + 2 * kv_size)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        cross_extra = 2 * self.head_dim + 2
        head = self.vocab_size * self.hidden_size
        num_all_layers = self.num_layers + self.num_cross_layers
        layers = num_all_layers * layer + self.num_cross_layers * cross_extra
        return layers + self.hidden_size + head

    @property
    def num_parameters(self) -> int:
        head = self.vocab_size * self.hidden_size
        embedding = self.num_embeddings * self.hidden_size - (head if self.has_tied_head else 0)
        total = self.num_decode_parameters + embedding
        if self.vision is not None:
            total += self.vision.num_parameters + (self.vision.output_dim + 1) * self.hidden_size
        return total

    def weight_bytes(self, dtype_bytes: int) -> int:
        """Bytes of all weights at this element size."""
        return self.num_parameters * dtype_bytes

    @classmethod
    def from_hf(cls, config: Any, generation_config: dict[str, Any]) -> ModelSpec:
        """Read an HF `LlamaConfig` or `MllamaConfig` and a generation_config.json's content."""
        text = config.get_text_config()
        _require(text.hidden_act == "silu", "hidden_act", "silu", text.hidden_act)
        for name in ("attention_bias", "mlp_bias"):
            _require(not getattr(text, name, False), name, "false", True)
        heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
        _require(heads % kv_heads == 0, "num_attention_heads", f"a multiple of {kv_heads}", heads)
        is_mllama = config.model_type == "mllama"
        cross = tuple(sorted(text.cross_attention_layers)) if is_mllama else ()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        eos = generation_config.get("eos_token_id", text.eos_token_id)
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
        return cls(
            architecture="mllama" if is_mllama else "llama",
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers - len(cross),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=text.rms_norm_eps,
            max_position_embeddings=text.max_position_embeddings,
            rope=_read_rope(text.rope_parameters),
            has_tied_head=bool(text.tie_word_embeddings),
            eos_ids=eos_ids,
            bos_id=text.bos_token_id,
            cross_attention_layers=cross,
            image_token_id=config.image_token_index if is_mllama else None,
            vision=_read_vision(config.vision_config) if is_mllama else None,
        )


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise CheckpointError(
            f"config.json: {name} must be {expected}, got {got!r}; this engine has no other form"
        )


def _read_rope(parameters: dict[str, Any]) -> RopeSpec:
    kind = parameters.get("rope_type", "default")
    _require(
        kind in ("default", "linear", "dynamic", "llama3"),
        "rope_type",
        "default, linear, dynamic or llama3",
        kind,
    )
    partial = parameters.get("partial_rotary_factor", 1.0)
    _require(partial == 1.0, "partial_rotary_factor", "1", partial)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    given = {name: parameters[name] for name in names if parameters.get(name) is not None}
    return RopeSpec(kind=kind, theta=float(parameters["rope_theta"]), **given)


def _read_vision(config: Any) -> VisionSpec:
    _require(config.hidden_act == "gelu", "vision hidden_act", "gelu", config.hidden_act)
    layers = tuple(config.intermediate_layers_indices)
    output_dim = config.hidden_size * (1 + len(layers))
    _require(
        config.vision_output_dim == output_dim,
        "vision_output_dim",
        f"hidden_size * (1 + intermediate layers) = {output_dim}",
        config.vision_output_dim,
    )
    size, tiles = config.image_size, config.max_num_tiles
    _require(isinstance(size, int), "vision image_size", "one int", size)
    # The image processor numbers tile layouts in this order, whatever the config says.
    layouts = [[h, w] for h in range(1, tiles + 1) for w in range(1, tiles + 1) if h * w <= tiles]
    found = [list(layout) for layout in config.supported_aspect_ratios]
    _require(found == layouts, "supported_aspect_ratios", str(layouts), found)
    return VisionSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.attention_heads,
        head_dim=config.hidden_size // config.attention_heads,
        num_layers=config.num_hidden_layers,
        num_global_layers=config.num_global_layers,
        num_channels=config.num_channels,
        image_size=size,
        patch_size=config.patch_size,
        max_num_tiles=tiles,
        num_aspect_ratios=len(layouts),
        intermediate_layers=layers,
        output_dim=output_dim,
        norm_eps=config.norm_eps,
    )
