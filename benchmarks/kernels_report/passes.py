"""The passes of an engine on meta tensors, with every op call and the Triton launches that it made.

Lengths cannot be read from a meta tensor, so tables are as wide as what they hold: every sequence is
full, every group is there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from stagebeam.benchmarks.kernels_report.sizes import meta_model, triton_ops
from stagebeam.engine.models.forward import (
    BranchAttention,
    CrossRows,
    ForwardBatch,
    KVLayers,
    PrefillAttention,
)
from stagebeam.engine.models.loader import Model
from stagebeam.kernels.registry import Ops
from stagebeam.kernels.triton_launch import Launch, record_launches

BLOCK_SIZE = 16
TRUNK_TOKENS, TAIL_TOKENS = 1024, 256  # of a decode step: a question deep in its stages
NUM_STATES, NUM_EOS = 39, 3  # of the automaton of four tags; of the published checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCall:
    """One call of an op: its arguments by name, and what it launched."""

    op: str
    arguments: dict[str, Any]
    launches: tuple[Launch, ...]


@contextmanager
def recorded_calls() -> Iterator[tuple[Ops, list[OpCall]]]:
    """Triton's ops, and the list that their calls are added to."""
    calls: list[OpCall] = []
    ops = triton_ops()

    def recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(function)

        def call(*args: Any, **named: Any) -> Any:
            arguments = parameters.bind(*args, **named).arguments
            with record_launches() as launches:
                result = function(*args, **named)
            calls.append(OpCall(op=name, arguments=arguments, launches=tuple(launches)))
            return result

        return call

    names = [field.name for field in fields(Ops)]
    yield Ops(**{name: recording(name, getattr(ops, name)) for name in names}), calls


class MetaEngine:
    """A model of a published size with its caches, on the meta device."""

    def __init__(self, size: str, dtype: torch.dtype, ops: Ops) -> None:
        self.model: Model = meta_model(size, dtype, ops)
        self._ops = ops
        spec = self.model.spec
        heads = (spec.num_kv_heads, spec.head_dim)
        # One layer's caches stand for all: a launch sees shapes only.
        kv = torch.empty(4096, BLOCK_SIZE, *heads, dtype=dtype, device="meta")
        slots = torch.empty(2, spec.vision_tokens, *heads, dtype=dtype, device="meta")
        self.kv: KVLayers = [(kv, kv)] * spec.num_layers
        self.cross_kv: KVLayers = [(slots, slots)] * spec.num_cross_layers

    def decode(
        self, num_rows: int, trunk_tokens: int = TRUNK_TOKENS, tail_tokens: int = TAIL_TOKENS
    ) -> None:
        """One step of `num_rows` branches of one question with an image."""
        batch = ForwardBatch(
            token_ids=_longs(num_rows),
            positions=_longs(num_rows),
            slot_mapping=_ints(num_rows),
            attention=BranchAttention(
                group_offsets=_ints(2),
                row_group=_ints(num_rows),
                trunk_tables=_ints(1, trunk_tokens // BLOCK_SIZE),
                trunk_lens=_ints(1),
                tail_tables=_ints(num_rows, tail_tokens // BLOCK_SIZE),
                tail_lens=_ints(num_rows),
                max_group_rows=num_rows,
            ),
            cross=_one_image(num_rows),
        )
        hidden = self.model.forward(batch, self.kv, self.cross_kv)
        self._sample(self.model.logits(hidden))

    def prefill(self, num_seqs: int, rows: int, tokens: int) -> None:
        """`num_seqs` prompts about one image, each the last `rows` of its `tokens` tokens."""
        num_rows = num_seqs * rows
        batch = ForwardBatch(
            token_ids=_longs(num_rows),
            positions=_longs(num_rows),
            slot_mapping=_ints(num_rows),
            attention=PrefillAttention(
                cu_seqlens_q=_ints(num_seqs + 1),
                seq_lens=_ints(num_seqs),
                block_tables=_ints(num_seqs, tokens // BLOCK_SIZE),
                max_seqlen_q=rows,
                max_seqlen_k=tokens,
            ),
            cross=_one_image(num_rows),
            output_rows=_longs(num_seqs),
        )
        hidden = self.model.forward(batch, self.kv, self.cross_kv)
        self.model.verdict_logits(hidden, _longs(num_seqs, 2))

    def encode_image(self) -> None:
        """The vision tower on a whole image, and the cross layers' keys and values."""
        vision = self.model.spec.vision
        assert vision is not None
        size, tiles = vision.image_size, vision.max_num_tiles
        pixels = torch.empty(tiles, vision.num_channels, size, size, device="meta")
        # The mask is a host array: its sum decides which tokens are valid.
        self.model.encode_image(pixels, vision.num_aspect_ratios, torch.ones(tiles))

    def fork(self, num_rows: int) -> None:
        """Copy the last block of `num_rows` branches in every layer."""
        self._ops.copy_blocks(self.kv, _ints(num_rows, 2))

    def merge(self, num_rows: int) -> None:
        """The op that no model uses: two sets of keys, attended apart."""
        spec, dtype = self.model.spec, self.kv[0][0].dtype
        out = torch.empty(num_rows, spec.num_heads, spec.head_dim, dtype=dtype, device="meta")
        lse = torch.empty(num_rows, spec.num_heads, device="meta")
        self._ops.merge_states(out, lse, out, lse)

    def _sample(self, logits: Tensor) -> None:
        num_rows, vocab_size = logits.shape
        next_state = torch.empty(NUM_STATES, vocab_size, dtype=torch.int16, device="meta")
        flags = torch.empty(num_rows, dtype=torch.bool, device="meta")
        seeds, uids, goal_masks = (_longs(num_rows) for _ in range(3))
        steps, top_k, states, max_tokens = (_ints(num_rows) for _ in range(4))
        temperature, top_p, min_p = (torch.empty(num_rows, device="meta") for _ in range(3))
        self._ops.sample_step(
            *(logits, seeds, uids, steps, temperature, top_k, top_p, min_p),
            *(next_state, _ints(NUM_STATES), states, goal_masks, _longs(NUM_EOS), flags),
            max_tokens,
        )


def _one_image(num_rows: int) -> CrossRows:
    return CrossRows(
        group_offsets=_ints(2),
        group_slots=_ints(1),
        max_group_rows=num_rows,
        slots=_ints(num_rows),
        kv_lens=_ints(num_rows),
        has_mlp=_ints(num_rows).bool(),
    )


def _ints(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def _longs(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")
