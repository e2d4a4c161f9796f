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
from stagebeam.engine.step.batch import DecodeRow
from stagebeam.engine.step.row_arrays import row_arrays, runs
from stagebeam.engine.tag_automaton import TagBank
from stagebeam.kernels.registry import Ops


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
    groups = runs([row.group for row in rows])
    images = runs([row.image.slot if row.image else -1 for row in rows])
    ends = [-(-(row.position + num_steps) // block_size) - row.trunk_blocks for row in rows]
    return StepShape(
        num_rows=round_up(len(rows)),
        max_group_rows=round_up(int(max(np.diff(groups).max(), np.diff(images).max()))),
        trunk_width=round_up(max(row.trunk_blocks for row in rows)),
        tail_width=round_up(max(ends)),
        has_image=any(row.image is not None for row in rows),
    )


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
        shape = self.shape
        widths = shape.num_rows, shape.trunk_width, shape.tail_width
        arrays = row_arrays(rows, self._kv_cache.pool, *widths)
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
