"""Decoding several steps at a time: graphs by shape, and what was sampled handed out step by step.

The rows' tokens do not depend on each other, so those of the next `poll_steps` steps are computed
without looking: one CUDA graph a shape, replayed, then one copy of all that was sampled. What a row
would have sampled after its end is thrown away and its blocks go back. On a CPU the same steps run
eagerly. Invariant: whatever a call returns, the pool's length of a finished row is exact.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stagebeam.engine.memory.image_slots import ImageSlots
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.models.loader import Model
from stagebeam.engine.step.batch import DecodeBatch, DecodeRow
from stagebeam.engine.step.runner import FINISH_REASONS, ModelRunner, StepResult
from stagebeam.engine.step.static_step import StaticStep, StepShape, shape_of
from stagebeam.engine.tag_automaton import TagBank
from stagebeam.kernels.registry import Ops

logger = logging.getLogger(__name__)

_WARM_UP_STEPS = (
    2  # before a capture: lazy initialisation and first-use compilation are not captured
)


class GraphRunner(ModelRunner):
    """A ModelRunner that decodes `poll_steps` steps ahead of what it hands out."""

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        image_slots: ImageSlots,
        bank: TagBank,
        ops: Ops,
        poll_steps: int,
    ) -> None:
        super().__init__(model, kv_cache, image_slots, bank, ops)
        self._poll_steps = poll_steps
        self._graphs: dict[StepShape, tuple[StaticStep, Callable[[], None]]] = {}
        self._memory_pool: Any = None  # shared: one graph runs at a time
        self._ahead: dict[int, deque[tuple[int, float, int, int]]] = {}  # by sequence id

    @torch.inference_mode()
    def decode(self, batch: DecodeBatch, may_run_ahead: bool = False) -> StepResult:
        """The next token of every row, computed now or with an earlier call's."""
        rows = batch.rows
        live = {row.seq for row in rows}
        self._ahead = {seq: sampled for seq, sampled in self._ahead.items() if seq in live}
        fresh = [row for row in rows if row.seq not in self._ahead]
        if fresh:
            # Rows that join the others go as far as those are, so that all look up together.
            lead = max((len(sampled) for sampled in self._ahead.values()), default=0)
            self._run_ahead(fresh, lead or self._poll_steps)
        result = StepResult([], [], [])
        for row in rows:
            sampled = self._ahead[row.seq]
            token_id, logprob, state, finish = sampled.popleft()
            if not sampled:
                del self._ahead[row.seq]
            result.token_ids.append([token_id])
            result.logprobs.append([logprob])
            result.finish.append(FINISH_REASONS[finish])
            row.last_token, row.state = token_id, state
            row.position += 1
            row.step += 1
        return result

    def _run_ahead(self, rows: Sequence[DecodeRow], num_steps: int) -> None:
        """Decode up to `num_steps` tokens a row and queue them; ends of rows cut their queues."""
        room = [row.max_tokens - row.step for row in rows]
        num_steps = min(num_steps, max(room))
        self.kv_cache.append_each(
            [(row.seq, min(num_steps, left)) for row, left in zip(rows, room)]
        )
        step, run = self._graph(shape_of(rows, num_steps, self.kv_cache.block_size))
        step.load(rows)
        for _ in range(num_steps):
            run()
        out = step.outputs(num_steps)
        columns = (x[:, : len(rows)].T.tolist() for x in (out.token_ids, out.logprobs, out.states))
        finish = out.finish[:, : len(rows)].T.tolist()
        for row, codes, *sampled in zip(rows, finish, *columns):
            end = next((i + 1 for i, code in enumerate(codes) if code), num_steps)
            self._ahead[row.seq] = deque(list(zip(*sampled, codes))[:end])
            if codes[end - 1]:
                self.kv_cache.pool.truncate(row.seq, row.position + end)

    def _graph(self, shape: StepShape) -> tuple[StaticStep, Callable[[], None]]:
        """The step of a shape and what runs it; captured at first use, and when tags were added."""
        found = self._graphs.get(shape)
        if found is not None and found[0].is_current(self.bank):
            return found
        if found is not None:
            self._graphs.clear()
        step = StaticStep(
            shape,
            self._poll_steps,
            self.model,
            self.kv_cache,
            self.image_slots,
            self.bank,
            self._ops,
            self._eos_ids,
        )
        run = self._capture(step) if self._device.type == "cuda" else step.run
        self._graphs[shape] = step, run
        return step, run

    def _capture(self, step: StaticStep) -> Callable[[], None]:
        """A CUDA graph of the step. Warming up and capturing run on padding: no block is touched."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            step.load([])
            for _ in range(_WARM_UP_STEPS):
                step.load([])
                step.run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        if self._memory_pool is None:
            self._memory_pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory_pool, stream=stream):
            step.run()
        logger.debug("captured a step of %s", step.shape)
        return graph.replay
