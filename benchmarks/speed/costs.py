"""What passes cost on a machine: from data sheets for GPUs, from calibration for this CPU.

Both answer the same questions about any model from its sizes alone: bytes to read, products to make,
and a fixed price a step and a layer. Neither runs the model that it is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stagebeam.benchmarks.speed.floor import step_bytes
from stagebeam.engine.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decode step: `rows` branches over `trunks` shared trunks of `trunk_tokens` each.

    tail_tokens: of one branch; vision_tokens: read by the cross layers, 0 without an image
    """

    rows: int
    trunk_tokens: int
    tail_tokens: float
    vision_tokens: int
    trunks: int = 1


class Costs(Protocol):
    """Seconds of each kind of pass."""

    @property
    def name(self) -> str: ...

    @property
    def weight_bytes(self) -> float: ...

    @property
    def kv_bytes(self) -> int: ...

    @property
    def memory_bytes(self) -> int | None: ...

    def decode_step(self, spec: ModelSpec, step: Step) -> float: ...

    def prefill(self, spec: ModelSpec, num_tokens: int, context: float) -> float: ...

    def encode(self, spec: ModelSpec) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheet:
    """A GPU by its data sheet, bf16; nothing here was measured.

    The shares of the peaks that are reached, and the fixed prices, are assumptions: 80 % of the
    bandwidth, 55 % of the dense bf16 products, 2.5 us a kernel and 9 kernels a layer in a CUDA graph,
    40 us of host work a step, 1 ms a prefill pass.
    """

    name: str
    bytes_per_second: float
    flops: float
    memory_bytes: int | None
    weight_bytes: float = 2.0
    kv_bytes: int = 2
    read_share: float = 0.8
    flops_share: float = 0.55
    layer_seconds: float = 9 * 2.5e-6
    step_seconds: float = 40e-6
    pass_seconds: float = 1e-3

    def decode_step(self, spec: ModelSpec, step: Step) -> float:
        read = step_bytes(
            spec,
            weight_bytes=self.weight_bytes,
            kv_bytes=self.kv_bytes,
            trunk_tokens=step.trunks * step.trunk_tokens,
            tail_tokens=int(step.rows * step.tail_tokens),
            vision_tokens=step.vision_tokens,
        )
        work = 2.0 * spec.num_decode_parameters * step.rows
        work += _attention_flops(spec, step.rows, step.trunk_tokens + step.tail_tokens)
        layers = spec.num_layers + spec.num_cross_layers
        return self._roof(read, work) + self.step_seconds + layers * self.layer_seconds

    def prefill(self, spec: ModelSpec, num_tokens: int, context: float) -> float:
        work = 2 * text_parameters(spec) * num_tokens + _attention_flops(spec, num_tokens, context)
        read = spec.num_decode_parameters * self.weight_bytes
        return self._roof(read, work) + self.pass_seconds

    def encode(self, spec: ModelSpec) -> float:
        if spec.vision is None:
            return 0.0
        read = spec.vision.num_parameters * self.weight_bytes
        return self._roof(read, encode_flops(spec)) + self.pass_seconds

    def _roof(self, read: float, work: float) -> float:
        return max(
            read / (self.read_share * self.bytes_per_second), work / (self.flops_share * self.flops)
        )


_GB = 10**9
# Bandwidth, dense bf16 products and memory from NVIDIA's data sheets (SXM where there is one).
GPUS = {
    "a100": DataSheet(name="A100", bytes_per_second=2.039e12, flops=312e12, memory_bytes=80 * _GB),
    "h100": DataSheet(name="H100", bytes_per_second=3.35e12, flops=989e12, memory_bytes=80 * _GB),
    "h200": DataSheet(name="H200", bytes_per_second=4.8e12, flops=989e12, memory_bytes=141 * _GB),
    "b200": DataSheet(name="B200", bytes_per_second=8e12, flops=2.25e15, memory_bytes=180 * _GB),
    "l40s": DataSheet(name="L40S", bytes_per_second=864e9, flops=362e12, memory_bytes=48 * _GB),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """This CPU with one backend and number format, from `calibrate`.

    rows:       the numbers of rows that were timed; between them prices are interpolated
    per_step, per_layer, per_weight_byte, per_vocabulary_entry: seconds, one each a number of rows
    per_kv_number: a cached number that so many rows share, in all
    prefill_flops: products a second of a long prefill; encode the same
    """

    name: str
    rows: tuple[int, ...]
    per_step: tuple[float, ...]
    per_layer: tuple[float, ...]
    per_weight_byte: tuple[float, ...]
    per_vocabulary_entry: tuple[float, ...]
    per_kv_number: tuple[float, ...]
    prefill_flops: float
    weight_bytes: float
    kv_bytes: int
    memory_bytes: int | None = None

    def decode_step(self, spec: ModelSpec, step: Step) -> float:
        def price(prices: Sequence[float], rows: float = step.rows) -> float:
            return float(np.interp(rows, self.rows, prices))

        width = 2 * spec.num_kv_heads * spec.head_dim
        attention = spec.num_layers * (
            step.trunks * step.trunk_tokens * price(self.per_kv_number, step.rows / step.trunks)
            + step.rows * step.tail_tokens * price(self.per_kv_number, 1)
        ) + spec.num_cross_layers * step.vision_tokens * price(self.per_kv_number)
        return (
            price(self.per_step)
            + price(self.per_layer) * (spec.num_layers + spec.num_cross_layers)
            + price(self.per_weight_byte) * spec.num_decode_parameters * self.weight_bytes
            + price(self.per_vocabulary_entry) * spec.vocab_size
            + attention * width
        )

    def prefill(self, spec: ModelSpec, num_tokens: int, context: float) -> float:
        work = 2 * text_parameters(spec) * num_tokens + _attention_flops(spec, num_tokens, context)
        layers = spec.num_layers + spec.num_cross_layers
        return work / self.prefill_flops + self.per_step[0] + layers * self.per_layer[0]

    def encode(self, spec: ModelSpec) -> float:
        return encode_flops(spec) / self.prefill_flops if spec.vision else 0.0


def text_parameters(spec: ModelSpec) -> int:
    """Weights that every token of a prefill meets: the head is for output rows only."""
    return spec.num_decode_parameters - spec.vocab_size * spec.hidden_size


def encode_flops(spec: ModelSpec) -> float:
    """Products of one padded image through the tower, the projector and the cross layers' K and V."""
    vision = spec.vision
    if vision is None:
        return 0.0
    tokens = spec.vision_tokens
    layers = vision.num_layers + vision.num_global_layers
    matrices = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tower = 2 * layers * matrices * tokens + 4 * layers * tokens**2 * vision.hidden_size
    projector = 2 * tokens * vision.output_dim * spec.hidden_size
    kv = 4 * tokens * spec.hidden_size * spec.num_kv_heads * spec.head_dim * spec.num_cross_layers
    return tower + projector + kv


def _attention_flops(spec: ModelSpec, rows: float, context: float) -> float:
    return 4 * rows * context * spec.num_heads * spec.head_dim * spec.num_layers
