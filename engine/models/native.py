"""The text decoder as a native program: a list of C++ operations over packed weights.

Built once from a checkpoint, tensor by tensor, so that no second copy of the weights is held; then a
decode step is one call without the GIL. The vision tower, the projector and the image's keys and
values stay in PyTorch, in float32: they run once an image, where a float32 library product is as fast
as any, and never in a decode step. Holds weights only; the caches come with each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.engine.errors import ImageError
from stagebeam.engine.models.forward import (
    BranchAttention,
    CrossRows,
    ForwardBatch,
    KVLayers,
)
from stagebeam.engine.models.rope import rope_table
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.vision import VisionTower
from stagebeam.engine.models.weights import Weights
from stagebeam.kernels.native_arrays import cache_format, has_heads_apart
from stagebeam.kernels.registry import Ops

# Weight formats by the name of the engine's dtype.
FORMATS = {"float32": "float32", "bfloat16": "bf16", "int8": "int8", "int4": "int4"}
# Formats of the embedding and the head where they differ: 4 bits cost most there.
END_FORMATS = {"int4": "int8"}
_CACHE_INT8 = _cpu.CACHE_FORMATS["int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAddresses:
    """A decode batch's arrays by address, as bindings/cpu_step.cpp lists them."""

    state: tuple[int, ...]
    groups: tuple[int, ...]
    images: tuple[int, ...]
    sampling: tuple[int, ...]
    sampled: tuple[int, ...]


class TagTables(Protocol):
    """The tag automaton's tables; `TagBank` says what they hold."""

    next_state: Tensor
    accept_tag: Tensor


class NativeModel:
    """Mllama or Llama; its activations are float32 whatever its weights are.

    weight_format: a key of FORMATS
    num_threads:   None takes one a physical core, within what a control group allows
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        ops: Ops,
        *,
        weight_format: str,
        num_threads: int | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device("cpu")
        self._format = FORMATS[weight_format]
        end_format = END_FORMATS.get(self._format, self._format)
        self._weights = weights
        self._cos_sin = rope_table(
            spec.rope, spec.head_dim, spec.max_position_embeddings, self.device
        )
        self.program = _cpu.StepProgram(
            spec.hidden_size,
            spec.vocab_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.rms_norm_eps,
            self._cos_sin.data_ptr(),
            num_threads or 0,
        )
        self._images: _ImageEncoder | None = None
        self._caches: tuple[KVLayers, KVLayers] | None = None
        if spec.architecture == "mllama":
            self._images = _ImageEncoder(spec, weights, ops)
        prefix = "language_model." if spec.architecture == "mllama" else ""
        embedding = self._matrix(
            (f"{prefix}embed_tokens.weight",), (spec.num_embeddings,), weight_format=end_format
        )
        for i in range(spec.num_layers + spec.num_cross_layers):
            if i in spec.cross_attention_layers:
                self._cross_layer(f"{prefix}layers.{i}")
            else:
                self._self_layer(f"{prefix}layers.{i}")
        norm = self._vector(f"{prefix}norm.weight", spec.hidden_size)
        head = embedding
        if not spec.has_tied_head:
            head = self._matrix(("lm_head.weight",), (spec.vocab_size,), weight_format=end_format)
        self.program.set_ends(embedding, norm, head)
        del self._weights

    def _self_layer(self, name: str) -> None:
        """A Llama decoder layer."""
        spec, program = self.spec, self.program
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        qkv = self._matrix(
            tuple(f"{name}.self_attn.{part}_proj.weight" for part in "qkv"),
            (q_size, kv_size, kv_size),
        )
        program.norm_linear(self._norm(f"{name}.input_layernorm"), qkv)
        program.self_attention()
        out = self._matrix((f"{name}.self_attn.o_proj.weight",), (spec.hidden_size,), q_size)
        program.residual_linear(out, True)
        self._gated_mlp(name)

    def _cross_layer(self, name: str) -> None:
        """Attention over the image and an MLP, each behind a tanh gate; rows without an image pass."""
        spec, program = self.spec, self.program
        q_size = spec.num_heads * spec.head_dim
        query = self._matrix((f"{name}.cross_attn.q_proj.weight",), (q_size,))
        program.norm_linear(self._norm(f"{name}.input_layernorm"), query, "image")
        program.cross_attention(self._vector(f"{name}.cross_attn.q_norm.weight", spec.head_dim))
        out = self._matrix((f"{name}.cross_attn.o_proj.weight",), (spec.hidden_size,), q_size)
        program.residual_linear(out, True, self._gate(f"{name}.cross_attn_attn_gate"), "image")
        self._gated_mlp(name, self._gate(f"{name}.cross_attn_mlp_gate"), "image_mlp")

    def _gated_mlp(self, name: str, scale: float = 1.0, rows: str = "all") -> None:
        inner = self.spec.intermediate_size
        gate_up = self._matrix(
            (f"{name}.mlp.gate_proj.weight", f"{name}.mlp.up_proj.weight"),
            (inner, inner),
            is_gate_up=True,
        )
        norm = self._norm(f"{name}.post_attention_layernorm")
        self.program.norm_linear(norm, gate_up, rows)
        down = self._matrix((f"{name}.mlp.down_proj.weight",), (self.spec.hidden_size,), inner)
        self.program.residual_linear(down, False, scale, rows)

    def _matrix(
        self,
        names: tuple[str, ...],
        rows: tuple[int, ...],
        columns: int | None = None,
        is_gate_up: bool = False,
        weight_format: str | None = None,
    ) -> int:
        """Matrices of one width stacked and packed, straight from where the checkpoint holds them."""
        columns = columns or self.spec.hidden_size
        matrix = self.program.add_matrix(
            sum(rows), columns, weight_format or self._format, is_gate_up
        )
        begin = 0
        for name, num_rows in zip(names, rows, strict=True):
            source = self._weights.borrow(name, num_rows, columns).contiguous()
            if source.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                source = source.float()
            kind = str(source.dtype).removeprefix("torch.")
            self.program.pack_rows(matrix, begin, num_rows, source.data_ptr(), kind, columns)
            begin += num_rows
        return matrix

    def _vector(self, name: str, size: int) -> int:
        values = self._weights.borrow(name, size).float().contiguous()
        return self.program.add_vector(values.data_ptr(), size)

    def _norm(self, name: str) -> int:
        return self._vector(f"{name}.weight", self.spec.hidden_size)

    def _gate(self, name: str) -> float:
        return float(self._weights.borrow(name, 1).float().tanh())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in memory: packed, and the vision tower's."""
        return self.program.packed_bytes + (self._images.weight_bytes if self._images else 0)

    def forward(self, batch: ForwardBatch, kv: KVLayers, cross_kv: KVLayers) -> Tensor:
        """Run one pass; see `Model.forward`."""
        self._bind(kv, cross_kv)
        rows = batch.output_rows
        if rows is None:
            rows = torch.arange(len(batch.token_ids))
        hidden = torch.empty(len(rows), self.spec.hidden_size)
        outputs = len(hidden), rows.data_ptr(), hidden.data_ptr()
        a = batch.attention
        if isinstance(a, BranchAttention):
            self.program.hidden_states(_rows(batch), _branches(a), _cross(batch.cross), outputs)
            return hidden
        sequences = (
            *(len(a.seq_lens), a.cu_seqlens_q.data_ptr(), a.seq_lens.data_ptr()),
            *(a.block_tables.data_ptr(), a.block_tables.shape[1]),
        )
        self.program.prefill(_rows(batch), sequences, _cross(batch.cross), outputs)
        return hidden

    def decode_steps(
        self,
        max_steps: int,
        batch: DecodeAddresses,
        kv: KVLayers,
        cross_kv: KVLayers,
        bank: TagTables,
        eos_ids: Tensor,
    ) -> int:
        """Up to `max_steps` decode steps in one native call, the batch's arrays advanced in place.

        Ends after a step in which a row finished; returns the number of steps.
        """
        self._bind(kv, cross_kv)
        tables = (
            *(bank.next_state.data_ptr(), bank.accept_tag.data_ptr()),
            *(eos_ids.data_ptr(), len(eos_ids)),
        )
        return self.program.decode(
            max_steps,
            *(batch.state, batch.groups, batch.images, batch.sampling),
            *(tables, batch.sampled),
        )

    def last_logits(self, num_rows: int) -> Tensor:
        """What the last decode step's rows chose from, float32 [num_rows, vocab_size]."""
        out = torch.empty(num_rows, self.spec.vocab_size)
        self.program.copy_last_logits(num_rows, out.data_ptr())
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        rows = hidden.float().contiguous()
        out = torch.empty(len(rows), self.program.num_head_rows)
        self.program.logits(rows.data_ptr(), len(rows), out.data_ptr())
        return out[:, : self.spec.vocab_size]

    def verdict_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits of ids [R, 2] at hidden states [R, hidden_size], float32 [R, 2]."""
        rows, columns = hidden.float().contiguous(), ids.contiguous()
        out = torch.empty(len(rows), 2)
        self.program.logits_of(rows.data_ptr(), len(rows), columns.data_ptr(), 2, out.data_ptr())
        return out

    def encode_image(
        self, pixel_values: Tensor, aspect_ratio_id: int, aspect_ratio_mask: Tensor
    ) -> KVLayers:
        """See `Model.encode_image`."""
        if self._images is None:
            raise ImageError("this model is text-only and cannot see an image; ask without one")
        return self._images.encode(pixel_values, aspect_ratio_id, int(aspect_ratio_mask.sum()))

    def _bind(self, kv: KVLayers, cross_kv: KVLayers) -> None:
        """Tell the program where the caches are, once while they stay the same."""
        if self._caches is not None and self._caches[0] is kv and self._caches[1] is cross_kv:
            return
        self.program.bind_caches(_cache_fields(kv), _cache_fields(cross_kv))
        self._caches = kv, cross_kv


def _cache_fields(layers: KVLayers) -> list[tuple[int, ...]]:
    for layer in layers:
        is_apart = has_heads_apart(layer[0])
        assert all(has_heads_apart(x) if is_apart else x.is_contiguous() for x in layer)
    return [
        (
            _CACHE_INT8 if scales else cache_format(k, may_have_heads_apart=True),
            *(k.shape[1], k.stride(1), k.stride(2), k.data_ptr(), v.data_ptr()),
            *((x.data_ptr() for x in scales) if scales else (0, 0)),
        )
        for k, v, *scales in layers
    ]


def _rows(batch: ForwardBatch) -> tuple[int, int, int, int]:
    return (
        len(batch.token_ids),
        batch.token_ids.data_ptr(),
        batch.positions.data_ptr(),
        batch.slot_mapping.data_ptr(),
    )


def _branches(a: BranchAttention) -> tuple[int, ...]:
    return (
        *(len(a.trunk_lens), a.group_offsets.data_ptr(), a.trunk_tables.data_ptr()),
        *(a.trunk_tables.shape[1], a.trunk_lens.data_ptr(), a.tail_tables.data_ptr()),
        *(a.tail_tables.shape[1], a.tail_lens.data_ptr()),
    )


def _cross(cross: CrossRows | None) -> tuple[int, int, int, int, int]:
    if cross is None:
        return (0, 0, 0, 0, 0)
    return (
        len(cross.group_slots),
        cross.group_offsets.data_ptr(),
        cross.group_slots.data_ptr(),
        cross.kv_lens.data_ptr(),
        cross.has_mlp.data_ptr(),
    )


class _ImageEncoder:
    """The vision tower, its projector, and each cross layer's keys and values, in PyTorch."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops) -> None:
        assert spec.vision is not None, "Mllama has a vision tower"
        self._ops, self._spec = ops, spec
        self._vision = VisionTower(spec.vision, weights, "vision_model", ops)
        self._projector = weights.take(
            "multi_modal_projector.weight", spec.hidden_size, spec.vision.output_dim
        )
        self._projector_bias = weights.take("multi_modal_projector.bias", spec.hidden_size)
        kv_size = spec.num_kv_heads * spec.head_dim
        self._layers = []
        for i in spec.cross_attention_layers:
            name = f"language_model.layers.{i}.cross_attn"
            key_value = weights.take_fused(
                (f"{name}.k_proj.weight", f"{name}.v_proj.weight"),
                (kv_size, kv_size),
                spec.hidden_size,
            )
            self._layers.append((key_value, weights.take(f"{name}.k_norm.weight", spec.head_dim)))
        num_weights = spec.vision.num_parameters + self._projector.numel() + spec.hidden_size
        num_weights += sum(key_value.numel() + norm.numel() for key_value, norm in self._layers)
        self.weight_bytes = num_weights * self._projector.element_size()

    def encode(self, pixel_values: Tensor, aspect_ratio_id: int, num_tiles: int) -> KVLayers:
        features = self._vision(pixel_values, aspect_ratio_id, num_tiles).flatten(0, 1)
        features = F.linear(features, self._projector, self._projector_bias)
        spec = self._spec
        layers: KVLayers = []
        for key_value, k_norm in self._layers:
            k, v = F.linear(features, key_value).chunk(2, dim=1)
            heads = self._ops.rms_norm(k.reshape(-1, spec.head_dim), k_norm, spec.rms_norm_eps)
            shape = (len(features), spec.num_kv_heads, spec.head_dim)
            layers.append((heads.view(shape), v.reshape(shape)))
        return layers
