"""The least a search's decoding can take: bytes that must be read, over the read bandwidth.

A step reads the decode weights once, the trunk once for all its branches, each branch's own tail,
and the image once. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.outputs import StageResult

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 0.5}


def step_bytes(
    spec: ModelSpec,
    *,
    weight_bytes: float,
    kv_bytes: int,
    trunk_tokens: int,
    tail_tokens: int,
    vision_tokens: int,
) -> float:
    """Bytes one decode step must read.

    weight_bytes, kv_bytes: of one weight and of one cached number
    tail_tokens:            of all branches together
    vision_tokens:          read in the cross layers, 0 without an image
    """
    cross = 2 * spec.num_cross_layers * spec.num_kv_heads * spec.head_dim * kv_bytes
    text = spec.kv_bytes_per_token(kv_bytes)
    return (
        spec.num_decode_parameters * weight_bytes
        + (trunk_tokens + tail_tokens) * text
        + vision_tokens * cross
    )


def search_bytes(
    spec: ModelSpec,
    stages: Sequence[StageResult],
    *,
    weight_bytes: float,
    kv_bytes: int,
    prompt_tokens: int,
    vision_tokens: int,
) -> float:
    """Bytes that the decode steps of a whole search must read, judging left out."""
    trunk, total = prompt_tokens, 0.0
    for stage in stages:
        lengths = [len(candidate.token_ids) for candidate in stage.candidates]
        for step in range(1, max(lengths, default=0) + 1):
            live = sum(length >= step for length in lengths)
            total += step_bytes(
                spec,
                weight_bytes=weight_bytes,
                kv_bytes=kv_bytes,
                trunk_tokens=trunk,
                tail_tokens=live * step,
                vision_tokens=vision_tokens,
            )
        trunk += lengths[stage.winner]
    return total


def ideal_kv_bytes(
    spec: ModelSpec,
    stages: Sequence[StageResult],
    *,
    kv_bytes: int,
    prompt_tokens: int,
    block_size: int,
    has_image: bool,
) -> int:
    """One trunk, N tails and one image at the widest moment, each in whole blocks.

    The trunk holds all its tokens but the last. A tail starts with its copy of the trunk's last
    block where that is not full.
    """
    trunk, most = prompt_tokens, 0
    for stage in stages:
        lengths = [len(candidate.token_ids) for candidate in stage.candidates]
        shared = (trunk - 1) // block_size
        own = sum(-(-(trunk - 1 + length) // block_size) - shared for length in lengths)
        most = max(most, -(-(trunk - 1) // block_size) + own)
        trunk += lengths[stage.winner]
    image = spec.image_slot_bytes(kv_bytes) if has_image else 0
    return most * block_size * spec.kv_bytes_per_token(kv_bytes) + image
