"""Decode steps in the native program: the arrays stay, a call moves them on by itself.

Python is entered once a call, which takes up to `poll_steps` steps and ends early where a row
finishes; whoever calls decides who decodes next. Invariant: the pool's length of a row that finished
is exact, that of the others may be up to `poll_steps` ahead of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from stagebeam.engine.memory.image_slots import ImageSlots
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.models.native import DecodeAddresses, NativeModel
from stagebeam.engine.step.batch import DecodeBatch, DecodeRow
from stagebeam.engine.step.row_arrays import row_arrays, runs
from stagebeam.engine.step.runner import FINISH_REASONS, ModelRunner, StepResult
from stagebeam.engine.tag_automaton import TagBank
from stagebeam.kernels.registry import Ops

# Weights that a call may read: some milliseconds of work between two looks at the queue.
BYTES_A_CALL = 64 << 20
MAX_POLL_STEPS = 16


def default_poll_steps(decode_bytes: int) -> int:
    """Steps a call for a model whose step reads this many bytes of weights: 1 for large ones."""
    return max(1, min(MAX_POLL_STEPS, BYTES_A_CALL // max(1, decode_bytes)))


class NativeRunner(ModelRunner):
    """A ModelRunner whose decode steps are one native call; prefill is the model's own."""

    def __init__(
        self,
        model: NativeModel,
        kv_cache: KVCache,
        image_slots: ImageSlots,
        bank: TagBank,
        ops: Ops,
        poll_steps: int | None,
    ) -> None:
        super().__init__(model, kv_cache, image_slots, bank, ops)
        self._native = model
        self._poll_steps = poll_steps or default_poll_steps(model.program.decode_bytes(True))
        self._arrays: _Arrays | None = None
        self._arrays_of: tuple[DecodeBatch, int] | None = None

    def decode(self, batch: DecodeBatch, may_run_ahead: bool = False) -> StepResult:
        rows, pool = batch.rows, self.kv_cache.pool
        max_steps = self._poll_steps if may_run_ahead else 1
        self._append(rows, max_steps)
        if self._arrays is None or self._arrays_of != (batch, batch.version):
            self._arrays = _Arrays(rows, self.kv_cache, self._poll_steps)
            self._arrays_of = batch, batch.version
        arrays = self._arrays
        arrays.fill_tail_tables()
        num_steps = self._native.decode_steps(
            max_steps,
            arrays.addresses,
            self.kv_cache.layers,
            self.image_slots.layers,
            self.bank,
            self._eos_ids,
        )
        result = arrays.result(num_steps)
        states = arrays.states.tolist()
        for row, token_ids, state, finish in zip(rows, result.token_ids, states, result.finish):
            row.last_token, row.state = token_ids[-1], state
            row.position += num_steps
            row.step += num_steps
            if finish is not None and pool.length(row.seq) > row.position:
                pool.truncate(row.seq, row.position)
        return result

    def last_logits(self, num_rows: int) -> torch.Tensor:
        """What the last step chose from, float32 [num_rows, vocab_size]: for tests."""
        return self._native.last_logits(num_rows)

    def _append(self, rows: Sequence[DecodeRow], num_steps: int) -> None:
        """Take the blocks of the coming steps, as far as an earlier call has not."""
        length = self.kv_cache.pool.length
        counts = [
            (row.seq, row.position + min(num_steps, row.max_tokens - row.step) - length(row.seq))
            for row in rows
        ]
        missing = [(seq, count) for seq, count in counts if count > 0]
        if missing:
            self.kv_cache.append_each(missing)


class _Arrays:
    """The rows of one batch membership, by address in the form that the program takes."""

    def __init__(self, rows: Sequence[DecodeRow], kv_cache: KVCache, max_steps: int) -> None:
        self._pool = kv_cache.pool
        block_size, num_rows = kv_cache.block_size, len(rows)
        ends = [row.position + row.max_tokens - row.step for row in rows]
        tail_width = max(-(-end // block_size) - row.trunk_blocks for end, row in zip(ends, rows))
        trunk_width = max(row.trunk_blocks for row in rows)
        a = row_arrays(rows, self._pool, num_rows, trunk_width, tail_width)
        self._seqs = np.array([row.seq for row in rows], dtype=np.int64)
        starts = runs([row.group for row in rows])
        self._groups = [(begin, end, rows[begin].trunk_blocks) for begin, end in pairwise(starts)]
        self._tail_tables, self.states = a["tail_tables"], a["states"]
        self._out = (
            np.empty((max_steps, num_rows), dtype=np.int64),
            np.empty((max_steps, num_rows), dtype=np.float32),
            np.empty((max_steps, num_rows), dtype=np.int32),
            np.empty((max_steps, num_rows), dtype=np.int8),
        )
        num_images = 0
        if any(row.image is not None for row in rows):
            num_images = len(runs(a["slots"].tolist())) - 1

        def at(*names: str) -> tuple[int, ...]:
            return tuple(a[name].ctypes.data for name in names)

        self._held = a  # the addresses are of these
        self.addresses = DecodeAddresses(
            state=(num_rows, block_size, *at("token_ids", "positions", "steps", "states")),
            groups=(
                *(len(self._groups), *at("group_offsets", "trunk_tables"), trunk_width),
                *(*at("trunk_lens", "tail_tables"), tail_width),
            ),
            images=(num_images, *at("image_offsets", "image_slots", "kv_lens")),
            sampling=at(
                *("seeds", "uids", "temperature", "top_k", "top_p", "min_p"),
                *("goal_masks", "ignore_eos", "max_tokens"),
            ),
            sampled=tuple(array.ctypes.data for array in self._out),
        )

    def fill_tail_tables(self) -> None:
        for begin, end, trunk_blocks in self._groups:
            self._pool.fill_block_tables(
                self._seqs[begin:end], self._tail_tables[begin:end], trunk_blocks
            )

    def result(self, num_steps: int) -> StepResult:
        token_ids, logprobs, _, finish = self._out
        return StepResult(
            token_ids[:num_steps].T.tolist(),
            logprobs[:num_steps].T.tolist(),
            [FINISH_REASONS[code] for code in finish[num_steps - 1].tolist()],
        )
