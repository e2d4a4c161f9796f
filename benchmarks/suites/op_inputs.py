"""Each op's arguments at the mid-size model's sizes: four branches over a trunk of 256 tokens, or a
prefill of 128. In place of real data, drawn numbers; every call may run any number of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS, PREFILL_ROWS, TRUNK, TAIL, BLOCK = 4, 128, 256, 40, 16
WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 576, 1536, 9, 3, 64, 49152
NUM_BLOCKS, VISION_TOKENS = 256, 65
SM_SCALE = HEAD_DIM**-0.5


def _int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _cache() -> tuple[Tensor, Tensor]:
    shape = (NUM_BLOCKS, BLOCK, KV_HEADS, HEAD_DIM)
    return torch.randn(shape), torch.randn(shape)


def _queries(rows: int) -> Tensor:
    return torch.randn(rows, HEADS, HEAD_DIM)


def _branch_attention() -> tuple[Any, ...]:
    trunk_blocks, tail_blocks = TRUNK // BLOCK, -(-TAIL // BLOCK)
    tails = torch.arange(ROWS * tail_blocks, dtype=torch.int32).view(ROWS, -1) + trunk_blocks
    return (
        *(_queries(ROWS), *_cache(), _int32(0, ROWS), torch.zeros(ROWS, dtype=torch.int32)),
        *(torch.arange(trunk_blocks, dtype=torch.int32).view(1, -1), _int32(TRUNK)),
        *(tails, torch.full((ROWS,), TAIL, dtype=torch.int32), ROWS, SM_SCALE),
    )


def _prefill_attention() -> tuple[Any, ...]:
    length = TRUNK + PREFILL_ROWS
    tables = torch.arange(length // BLOCK, dtype=torch.int32).view(1, -1)
    return (
        *(_queries(PREFILL_ROWS), *_cache(), _int32(0, PREFILL_ROWS), _int32(length)),
        *(tables, PREFILL_ROWS, length, SM_SCALE),
    )


def _cross_attention() -> tuple[Any, ...]:
    slots = [torch.randn(2, VISION_TOKENS, KV_HEADS, HEAD_DIM) for _ in "kv"]
    lens = torch.full((ROWS,), VISION_TOKENS, dtype=torch.int32)
    return _queries(ROWS), *slots, _int32(0, ROWS), _int32(1), lens, ROWS, SM_SCALE


def _rotary() -> tuple[Any, ...]:
    heads = torch.randn(ROWS, HEADS, HEAD_DIM), torch.randn(ROWS, KV_HEADS, HEAD_DIM)
    angles = torch.rand(512, HEAD_DIM // 2)
    return *heads, torch.cat((angles.cos(), angles.sin()), 1), torch.full((ROWS,), TRUNK)


def _store_kv_cache() -> tuple[Any, ...]:
    new = [torch.randn(ROWS, KV_HEADS, HEAD_DIM) for _ in "kv"]
    return *new, *_cache(), torch.arange(ROWS, dtype=torch.int32) * BLOCK


def _copy_blocks() -> tuple[Any, ...]:
    pairs = [[i, i + NUM_BLOCKS // 2] for i in range(ROWS)]
    return [_cache() for _ in range(30)], torch.tensor(pairs, dtype=torch.int32)


def _merge_states() -> tuple[Any, ...]:
    return tuple(x for _ in range(2) for x in (_queries(ROWS), torch.randn(ROWS, HEADS)))


def _sample_step() -> tuple[Any, ...]:
    num_states = 40
    next_state = np.random.default_rng(0).integers(0, num_states, (num_states, VOCABULARY))
    ids = torch.arange(ROWS)
    return (
        *(4 * torch.randn(ROWS, VOCABULARY), ids, ids, torch.zeros(ROWS, dtype=torch.int32)),
        *(torch.full((ROWS,), 0.6), torch.full((ROWS,), 50, dtype=torch.int32)),
        *(torch.full((ROWS,), 0.9), torch.zeros(ROWS)),
        torch.from_numpy(next_state.astype(np.int16)),
        torch.full((num_states,), -1, dtype=torch.int32),
        *(torch.zeros(ROWS, dtype=torch.int32), torch.zeros(ROWS, dtype=torch.int64)),
        *(torch.tensor([2]), torch.zeros(ROWS, dtype=torch.bool)),
        torch.full((ROWS,), 1000, dtype=torch.int32),
    )


INPUTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "rms_norm": lambda: (torch.randn(ROWS, WIDTH), torch.randn(WIDTH), 1e-5),
    "add_rms_norm": lambda: (
        *(torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH), torch.randn(WIDTH), 1e-5),
    ),
    "layer_norm": lambda: (
        *(torch.randn(PREFILL_ROWS, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH), 1e-5),
    ),
    "rotary_": _rotary,
    "silu_mul": lambda: (torch.randn(ROWS, 2 * INNER),),
    "store_kv_cache": _store_kv_cache,
    "copy_blocks": _copy_blocks,
    "prefill_attention": _prefill_attention,
    "branch_attention": _branch_attention,
    "merge_states": _merge_states,
    "cross_attention": _cross_attention,
    "sample_step": _sample_step,
    "verdict_logits": lambda: (
        *(torch.randn(24, WIDTH), torch.randn(VOCABULARY, WIDTH)),
        torch.randint(0, VOCABULARY, (24, 2)),
    ),
}
