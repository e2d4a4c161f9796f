"""A decode step over static buffers: what a CUDA graph captures, and what runs eagerly on a CPU.

Rows are padded to the shape's number; a padding row attends to nothing and writes nothing. The step
reads its input from the buffers, advances them in place and appends to `Outputs`, so that it can be
repeated without the host. It never looks at a value. Knows no pool and no queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stagebeam.engine.memory.image_slots import ImageSlots
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.models.forward import BranchAttention, CrossRows, ForwardBatch
from stagebeam.engine.models.loader import Model
from stagebeam.engine.step.batch import DecodeRow, signed_64
from stagebeam.engine.tag_automaton import TagBank
from stagebeam.kernels.registry import Ops

_UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What is fixed in a graph; every number is a power of two (the widths may be 0).

    trunk_width, tail_width: block table columns; has_image: whether the cross layers run
    """

    num_rows: int
    max_group_rows: int
    trunk_width: int
    tail_width: int
    has_image: bool


def round_up(count: int) -> int:
    """The power of two at or above `count`; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0


def shape_of(rows: Sequence[DecodeRow], num_steps: int, block_size: int) -> StepShape:
    """The smallest shape for `num_steps` steps of these rows."""
    groups = _runs([row.group for row in rows])
    images = _runs([row.image.slot if row.image else -1 for row in rows])
    ends = [-(-(row.position + num_steps) // block_size) - row.trunk_blocks for row in rows]
    return StepShape(
        num_rows=round_up(len(rows)),
        max_group_rows=round_up(int(max(np.diff(groups).max(), np.diff(images).max()))),
        trunk_width=round_up(max(row.trunk_blocks for row in rows)),
        tail_width=round_up(max(ends)),
        has_image=any(row.image is not None for row in rows),
    )


def _runs(values: Sequence[int]) -> list[int]:
    """Where runs of one value begin, and the end."""
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    return [*starts, len(values)]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the steps since `load` sampled, [num_steps, num_rows]; finish is a code of FINISH."""

    token_ids: Tensor
    logprobs: Tensor
    states: Tensor
    finish: Tensor


class StaticStep:
    """The buffers of one shape and the step over them.

    max_steps: the most steps between two `load`s
    """

    def __init__(
        self,
        shape: StepShape,
        max_steps: int,
        model: Model,
        kv_cache: KVCache,
        image_slots: ImageSlots,
        bank: TagBank,
        ops: Ops,
        eos_ids: Tensor,
    ) -> None:
        self.shape = shape
        self._model = model
        self._kv_cache = kv_cache
        self._image_slots = image_slots
        self._next_state, self._accept_tag = bank.next_state, bank.accept_tag
        self._ops = ops
        self._eos_ids = eos_ids
        device = eos_ids.device
        num_rows = shape.num_rows

        def ints(*size: int) -> Tensor:
            return torch.empty(size, dtype=torch.int32, device=device)

        def longs(*size: int) -> Tensor:
            return torch.empty(size, dtype=torch.int64, device=device)

        def floats(*size: int) -> Tensor:
            return torch.empty(size, dtype=torch.float32, device=device)

        def flags(*size: int) -> Tensor:
            return torch.empty(size, dtype=torch.bool, device=device)

        self._rows = {
            **{name: longs(num_rows) for name in ("token_ids", "positions", "seeds", "uids")},
            **{name: ints(num_rows) for name in ("steps", "states", "top_k", "max_tokens")},
            **{name: floats(num_rows) for name in ("temperature", "top_p", "min_p")},
            "goal_masks": longs(num_rows),
            "ignore_eos": flags(num_rows),
            "is_live": flags(num_rows),
            "group_offsets": ints(num_rows + 1),
            "row_group": ints(num_rows),
            "trunk_blocks": longs(num_rows),  # of the row's group
            "trunk_lens": ints(num_rows),  # of each group
            "trunk_tables": ints(num_rows, shape.trunk_width),
            "tail_tables": ints(num_rows, shape.tail_width),
            "image_offsets": ints(num_rows + 1),
            "image_slots": ints(num_rows),  # of each run of rows with one image
            "slots": ints(num_rows),
            "kv_lens": ints(num_rows),
        }
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)
        self._has_mlp = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._out = Outputs(
            longs(max_steps, num_rows),
            floats(max_steps, num_rows),
            ints(max_steps, num_rows),
            torch.empty((max_steps, num_rows), dtype=torch.int8, device=device),
        )

    def is_current(self, bank: TagBank) -> bool:
        """Whether the bank still has the tables that the step reads."""
        return self._next_state is bank.next_state

    def load(self, rows: Sequence[DecodeRow]) -> None:
        """Take over the rows' state; their blocks for the coming steps are in the pool already.

        No rows is a batch of padding, for warming up: it reads and writes no block.
        """
        arrays = _padded(rows, self.shape, self._kv_cache)
        for name, values in arrays.items():
            self._rows[name].copy_(torch.from_numpy(values), non_blocking=True)
        self._turn.zero_()

    def run(self) -> None:
        """One step, in place: attend, sample, advance the live rows, append to the outputs."""
        r = self._rows
        positions, is_live = r["positions"], r["is_live"]
        hidden = self._model.forward(
            self._forward_batch(), self._kv_cache.layers, self._image_slots.layers
        )
        token_ids, logprobs, states, finish = self._ops.sample_step(
            self._model.logits(hidden),
            *(r["seeds"], r["uids"], r["steps"], r["temperature"]),
            *(r["top_k"], r["top_p"], r["min_p"]),
            self._next_state,
            self._accept_tag,
            r["states"],
            r["goal_masks"],
            self._eos_ids,
            r["ignore_eos"],
            r["max_tokens"],
        )
        out = self._out
        out.token_ids.index_copy_(0, self._turn, token_ids.unsqueeze(0))
        out.logprobs.index_copy_(0, self._turn, logprobs.unsqueeze(0))
        out.states.index_copy_(0, self._turn, states.unsqueeze(0))
        out.finish.index_copy_(0, self._turn, finish.unsqueeze(0))
        self._turn.add_(1)
        # A row that has finished stays where it is: its further tokens are thrown away.
        r["token_ids"].copy_(torch.where(is_live, token_ids, r["token_ids"]))
        r["states"].copy_(torch.where(is_live, states, r["states"]))
        positions.add_(is_live)
        r["steps"].add_(is_live)
        is_live.logical_and_(finish == 0)

    def outputs(self, num_steps: int) -> Outputs:
        """The last `num_steps` steps' outputs on the host; waits for them."""
        out = self._out
        tensors = (out.token_ids, out.logprobs, out.states, out.finish)
        return Outputs(*(tensor[:num_steps].cpu() for tensor in tensors))

    def _forward_batch(self) -> ForwardBatch:
        r, shape = self._rows, self.shape
        positions, is_live = r["positions"], r["is_live"]
        block_size = self._kv_cache.block_size
        column = (positions // block_size - r["trunk_blocks"]).clamp_(0, shape.tail_width - 1)
        block = r["tail_tables"].gather(1, column.unsqueeze(1)).squeeze(1)
        slots = torch.where(is_live, block * block_size + positions % block_size, -1).int()
        # One that has finished attends to what it has: nothing new is there.
        tail_lens = (positions + is_live - r["trunk_blocks"] * block_size).clamp_(min=0).int()
        cross = None
        if shape.has_image:
            cross = CrossRows(
                group_offsets=r["image_offsets"],
                group_slots=r["image_slots"],
                max_group_rows=shape.max_group_rows,
                slots=r["slots"],
                kv_lens=r["kv_lens"],
                has_mlp=self._has_mlp,
            )
        return ForwardBatch(
            token_ids=r["token_ids"],
            positions=positions,
            slot_mapping=slots,
            attention=BranchAttention(
                group_offsets=r["group_offsets"],
                row_group=r["row_group"],
                trunk_tables=r["trunk_tables"],
                trunk_lens=r["trunk_lens"],
                tail_tables=r["tail_tables"],
                tail_lens=tail_lens,
                max_group_rows=shape.max_group_rows,
            ),
            cross=cross,
        )


def _padded(
    rows: Sequence[DecodeRow], shape: StepShape, kv_cache: KVCache
) -> dict[str, np.ndarray]:
    """The rows' arrays, padded: a padding row is a group of its own, without trunk, tail and image."""
    total = shape.num_rows
    params = [row.sampling for row in rows]

    def pad(values: Sequence[object], fill: object, dtype: type) -> np.ndarray:
        array: np.ndarray = np.full(total, fill, dtype=dtype)
        array[: len(values)] = values
        return array

    starts, row_group, offsets = _grouped([row.group for row in rows], total)
    trunk_blocks = [row.trunk_blocks for row in rows]
    trunk_tables = np.full((total, shape.trunk_width), -1, dtype=np.int32)
    tail_tables = np.full((total, shape.tail_width), -1, dtype=np.int32)
    pool = kv_cache.pool
    for g, i in enumerate(starts):
        trunk_tables[g, : trunk_blocks[i]] = pool.block_table(rows[i].seq)[: trunk_blocks[i]]
    for i, row in enumerate(rows):
        pool.fill_block_tables([row.seq], tail_tables[i : i + 1], row.trunk_blocks)
    images = [row.image for row in rows]
    slots = [image.slot if image else -1 for image in images]
    image_starts, _, image_offsets = _grouped(slots, total)
    return {
        "token_ids": pad([row.last_token for row in rows], 0, np.int64),
        "positions": pad([row.position for row in rows], 0, np.int64),
        "seeds": pad([signed_64(row.seed) for row in rows], 0, np.int64),
        "uids": pad([signed_64(row.uid) for row in rows], 0, np.int64),
        "steps": pad([row.step for row in rows], 0, np.int32),
        "states": pad([row.state for row in rows], 0, np.int32),
        "temperature": pad([p.temperature for p in params], 0, np.float32),
        "top_k": pad([p.top_k for p in params], 0, np.int32),
        "top_p": pad([p.top_p for p in params], 1, np.float32),
        "min_p": pad([p.min_p for p in params], 0, np.float32),
        "goal_masks": pad([row.goal_mask for row in rows], 0, np.int64),
        "ignore_eos": pad([p.ignore_eos for p in params], True, np.bool_),
        "max_tokens": pad([row.max_tokens for row in rows], _UNLIMITED, np.int32),
        "is_live": pad([True] * len(rows), False, np.bool_),
        "group_offsets": offsets,
        "row_group": row_group,
        "trunk_blocks": pad(trunk_blocks, 0, np.int64),
        "trunk_lens": pad([trunk_blocks[i] * pool.block_size for i in starts], 0, np.int32),
        "trunk_tables": trunk_tables,
        "tail_tables": tail_tables,
        "image_offsets": image_offsets,
        "image_slots": pad([slots[i] for i in image_starts], -1, np.int32),
        "slots": pad(slots, -1, np.int32),
        "kv_lens": pad([image.valid_tokens if image else 1 for image in images], 1, np.int32),
    }


def _grouped(values: Sequence[int], total: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Runs of one value, then a run for each padding row, then empty ones.

    Returns the runs' first rows, each row's run int32 [total], and the offsets int32 [total + 1].
    """
    *starts, _ = _runs(values)
    is_first = np.zeros(total, dtype=np.int32)
    is_first[starts] = 1
    is_first[len(values) :] = 1
    offsets = np.full(total + 1, total, dtype=np.int32)
    firsts = np.flatnonzero(is_first)
    offsets[: len(firsts)] = firsts
    return starts, np.cumsum(is_first, dtype=np.int32) - 1, offsets
