"""The rotary embedding's table: cosines and sines by position.

Frequencies as HF's `modeling_rope_utils` computes them, in float32 on the CPU. "dynamic" changes
only beyond `max_position_embeddings`, which the engine never exceeds, so within it it is "default".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stagebeam.engine.models.spec import RopeSpec


def rope_table(spec: RopeSpec, head_dim: int, num_positions: int, device: torch.device) -> Tensor:
    """[num_positions, head_dim] float32: a row is cos of the head_dim / 2 angles, then sin."""
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * _frequencies(
        spec, head_dim
    )
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(device)


def _frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (spec.theta**exponents)
    if spec.kind == "linear":
        return frequencies / spec.factor
    if spec.kind == "llama3":
        return _llama3_scaled(frequencies, spec)
    return frequencies


def _llama3_scaled(frequencies: Tensor, spec: RopeSpec) -> Tensor:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, those between blended."""
    context = spec.original_max_position_embeddings
    low_wavelen = context / spec.low_freq_factor
    high_wavelen = context / spec.high_freq_factor
    wavelen = 2 * math.pi / frequencies
    scaled = torch.where(wavelen > low_wavelen, frequencies / spec.factor, frequencies)
    smooth = (context / wavelen - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    blended = (1 - smooth) * scaled / spec.factor + smooth * scaled
    is_between = (wavelen >= high_wavelen) & (wavelen <= low_wavelen)
    return torch.where(is_between, blended, scaled)
