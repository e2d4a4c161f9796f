"""Branches to arrays: the rows of a decode step and the packed chunks of a prefill pass.

Builds what `models/forward.py` describes. What changes only when a row joins or leaves is built
once and kept; a step then moves a few integers. Knows no policy and no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagebeam.bindings._core import BlockPool
from stagebeam.engine.models.forward import (
    BranchAttention,
    CrossRows,
    ForwardBatch,
    PrefillAttention,
)
from stagebeam.engine.params import SamplingParams
from stagebeam.engine.tag_automaton import TagSet

_NO_SLOT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """A sequence's image: its slot, where the image token stands, and the valid tiles' tokens."""

    slot: int
    position: int
    valid_tokens: int


@dataclass(slots=True, kw_only=True)
class DecodeRow:
    """One live branch in the decode batch.

    last_token: sampled (or given) and not yet in the cache; position is its place
    step:       tokens sampled so far in this sample
    group:      rows of one group share their first `trunk_blocks` blocks
    tags:       whose automaton `state` and `goal_mask` are of; held, so that its states stay
    """

    seq: int
    last_token: int
    position: int
    seed: int
    uid: int
    sampling: SamplingParams
    max_tokens: int
    state: int
    goal_mask: int
    group: int
    trunk_blocks: int
    image: ImageRef | None
    tags: TagSet | None = None
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """Consecutive tokens of one sequence, already appended to the pool.

    token_ids go to positions start ..; slots is where their K and V go, int32 [num_tokens]
    wants_hidden: whether the last row's hidden state is an output
    """

    seq: int
    token_ids: Sequence[int]
    start: int
    slots: np.ndarray
    image: ImageRef | None
    wants_hidden: bool = False


def signed_64(word: int) -> int:
    """A 64-bit word as the int64 that holds the same bits."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _int32(values: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int32))


def _int64(values: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64))


def _float32(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def prefill_batch(
    chunks: Sequence[PrefillChunk], pool: BlockPool, vision_tokens: int, device: torch.device
) -> ForwardBatch:
    """Pack chunks into one forward pass; outputs are the chunks that want one, in order."""
    lengths = np.array([len(chunk.token_ids) for chunk in chunks], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(c.start, c.start + len(c.token_ids)) for c in chunks])
    seq_lens = np.array([c.start + len(c.token_ids) for c in chunks], dtype=np.int32)
    max_seqlen_k = int(seq_lens.max())
    tables = np.empty((len(chunks), -(-max_seqlen_k // pool.block_size)), dtype=np.int32)
    for i, chunk in enumerate(chunks):
        table = pool.block_table(chunk.seq)[: tables.shape[1]]
        tables[i, : len(table)] = table
        tables[i, len(table) :] = -1
    outputs = [int(offsets[i + 1]) - 1 for i, chunk in enumerate(chunks) if chunk.wants_hidden]
    return ForwardBatch(
        token_ids=_int64(np.concatenate([np.asarray(c.token_ids) for c in chunks])).to(device),
        positions=_int64(positions).to(device),
        slot_mapping=_int32(np.concatenate([c.slots for c in chunks])).to(device),
        attention=PrefillAttention(
            cu_seqlens_q=_int32(offsets).to(device),
            seq_lens=_int32(seq_lens).to(device),
            block_tables=_int32(tables).to(device),
            max_seqlen_q=int(lengths.max()),
            max_seqlen_k=max_seqlen_k,
        ),
        cross=_prefill_cross(chunks, lengths, positions, vision_tokens, device),
        output_rows=_int64(outputs).to(device),
    )


def _prefill_cross(
    chunks: Sequence[PrefillChunk],
    lengths: np.ndarray,
    positions: np.ndarray,
    vision_tokens: int,
    device: torch.device,
) -> CrossRows | None:
    if all(chunk.image is None for chunk in chunks):
        return None
    images = [c.image or ImageRef(slot=_NO_SLOT, position=0, valid_tokens=0) for c in chunks]
    slots = np.repeat([image.slot for image in images], lengths)
    sees_image = positions >= np.repeat([image.position for image in images], lengths)
    valid = np.repeat([image.valid_tokens for image in images], lengths)
    kv_lens = np.where(sees_image, valid, vision_tokens)
    return CrossRows(
        **_slot_groups(slots, device),
        kv_lens=_int32(np.where(slots < 0, 1, kv_lens)).to(device),
        has_mlp=torch.from_numpy(sees_image).to(device),
    )


@dataclass(slots=True)
class SamplingArrays:
    """The per-row arguments of `sample_step` that change only with the batch's members."""

    seeds: Tensor
    uids: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    goal_masks: Tensor
    ignore_eos: Tensor
    max_tokens: Tensor


class DecodeBatch:
    """The live branches, rows of a group side by side, with their arrays."""

    def __init__(self, device: torch.device) -> None:
        self.rows: list[DecodeRow] = []
        self.version = 0  # grows when a row joins or leaves
        self._device = device
        self._is_stale = True

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, rows: Sequence[DecodeRow]) -> None:
        """Join the batch; the rows of one group come in one call."""
        self.rows.extend(rows)
        self._changed()

    def remove(self, gone: set[int]) -> None:
        """Leave the batch: every row whose sequence id is in `gone`."""
        self.rows = [row for row in self.rows if row.seq not in gone]
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._is_stale = True

    def forward_batch(self, slots: np.ndarray, pool: BlockPool) -> ForwardBatch:
        """This step's arrays; `slots` is where each row's token goes, int32 [num_rows]."""
        if self._is_stale:
            self._rebuild(pool)
        rows = self.rows
        positions = np.array([row.position for row in rows], dtype=np.int64)
        tail_lens = positions + 1 - self._trunk_tokens
        width = -(-int(tail_lens.max()) // pool.block_size)
        tail_tables = np.empty((len(rows), width), dtype=np.int32)
        for begin, end in zip(self._offsets[:-1], self._offsets[1:]):
            pool.fill_block_tables(
                self.seqs[begin:end], tail_tables[begin:end], rows[begin].trunk_blocks
            )
        device = self._device
        return ForwardBatch(
            token_ids=_int64([row.last_token for row in rows]).to(device),
            positions=_int64(positions).to(device),
            slot_mapping=_int32(slots).to(device),
            attention=BranchAttention(
                group_offsets=self._group_offsets,
                row_group=self._row_group,
                trunk_tables=self._trunk_tables,
                trunk_lens=self._trunk_lens,
                tail_tables=_int32(tail_tables).to(device),
                tail_lens=_int32(tail_lens).to(device),
                max_group_rows=self._max_group_rows,
            ),
            cross=self._cross,
        )

    @property
    def seqs(self) -> np.ndarray:
        if self._is_stale:
            return np.array([row.seq for row in self.rows], dtype=np.int64)
        return self._seqs

    def _rebuild(self, pool: BlockPool) -> None:
        rows, device, block_size = self.rows, self._device, pool.block_size
        self._seqs = np.array([row.seq for row in rows], dtype=np.int64)
        starts = [i for i, row in enumerate(rows) if i == 0 or row.group != rows[i - 1].group]
        self._offsets = [*starts, len(rows)]
        counts = np.diff(self._offsets)
        trunk_blocks = np.array([rows[i].trunk_blocks for i in starts], dtype=np.int32)
        trunk_tables = np.full((len(starts), int(trunk_blocks.max())), -1, dtype=np.int32)
        for g, i in enumerate(starts):
            trunk_tables[g, : trunk_blocks[g]] = pool.block_table(rows[i].seq)[: trunk_blocks[g]]
        self._trunk_tokens = np.repeat(trunk_blocks, counts).astype(np.int64) * block_size
        self._group_offsets = _int32(self._offsets).to(device)
        self._row_group = _int32(np.repeat(np.arange(len(starts)), counts)).to(device)
        self._trunk_tables = _int32(trunk_tables).to(device)
        self._trunk_lens = _int32(trunk_blocks * block_size).to(device)
        self._max_group_rows = int(counts.max())
        self._cross = _decode_cross(rows, device)
        params = [row.sampling for row in rows]
        self.sampling = SamplingArrays(
            seeds=_int64([signed_64(row.seed) for row in rows]).to(device),
            uids=_int64([signed_64(row.uid) for row in rows]).to(device),
            temperature=_float32([p.temperature for p in params]).to(device),
            top_k=_int32([p.top_k for p in params]).to(device),
            top_p=_float32([p.top_p for p in params]).to(device),
            min_p=_float32([p.min_p for p in params]).to(device),
            goal_masks=_int64([row.goal_mask for row in rows]).to(device),
            ignore_eos=torch.tensor([p.ignore_eos for p in params]).to(device),
            max_tokens=_int32([row.max_tokens for row in rows]).to(device),
        )
        self._is_stale = False

    def steps(self) -> Tensor:
        return _int32([row.step for row in self.rows]).to(self._device)

    def states(self) -> Tensor:
        return _int32([row.state for row in self.rows]).to(self._device)


def _decode_cross(rows: Sequence[DecodeRow], device: torch.device) -> CrossRows | None:
    if all(row.image is None for row in rows):
        return None
    slots = np.array([row.image.slot if row.image else _NO_SLOT for row in rows])
    return CrossRows(
        **_slot_groups(slots, device),
        kv_lens=_int32([row.image.valid_tokens if row.image else 1 for row in rows]).to(device),
        has_mlp=torch.ones(len(rows), dtype=torch.bool, device=device),
    )


def _slot_groups(slots: np.ndarray, device: torch.device) -> dict[str, Any]:
    """The rows' slots and their runs of one slot, as `CrossRows` names them."""
    starts = np.flatnonzero(np.diff(slots, prepend=slots[0] - 1))
    offsets = np.append(starts, len(slots))
    return {
        "slots": _int32(slots).to(device),
        "group_offsets": _int32(offsets).to(device),
        "group_slots": _int32(slots[starts]).to(device),
        "max_group_rows": int(np.diff(offsets).max()),
    }
