"""Micro-batches ready for the device, prepared ahead by threads where asked.

Every step carries the sampler's counts after it, so a checkpoint records what was trained on, not
what was prepared ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from stagebeam.training.collate import Batch, ModelShape, collate
from stagebeam.training.config import Phase
from stagebeam.training.examples import Example
from stagebeam.training.sampler import MicroBatch, MixtureSampler

_STEPS_AHEAD = 4


@dataclass(frozen=True, slots=True)
class StepBatches:
    """One optimiser step's micro-batches for this rank, each one's source, and the sampler's counts
    after the step."""

    batches: list[Batch]
    sources: list[int]
    counts: list[int]


def iterate_steps(
    phase: Phase,
    sampler: MixtureSampler,
    shape: ModelShape,
    *,
    num_steps: int,
    rank: int,
    num_ranks: int,
    num_workers: int,
) -> Iterator[StepBatches]:
    """Yield `num_steps` steps; with workers, a few of them are prepared ahead."""

    def prepare(micro_batch: MicroBatch) -> Batch:
        dataset = phase.sources[micro_batch.source].dataset
        indices = micro_batch.for_rank(rank, num_ranks)
        items = [dataset[int(index)] for index in indices]
        groups = [(item,) if isinstance(item, Example) else item for item in items]
        return collate([example for group in groups for example in group], shape)

    if num_workers == 0:
        for _ in range(num_steps):
            drawn = [sampler.draw() for _ in range(phase.accumulation)]
            sources = [one.source for one in drawn]
            yield StepBatches([prepare(one) for one in drawn], sources, list(sampler.counts))
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="batches") as pool:
        waiting: deque[tuple[list[Future[Batch]], list[int], list[int]]] = deque()
        try:
            for step in range(num_steps + _STEPS_AHEAD):
                if step < num_steps:
                    drawn = [sampler.draw() for _ in range(phase.accumulation)]
                    futures = [pool.submit(prepare, one) for one in drawn]
                    sources = [one.source for one in drawn]
                    waiting.append((futures, sources, list(sampler.counts)))
                if waiting and step >= min(_STEPS_AHEAD, num_steps):
                    futures, sources, counts = waiting.popleft()
                    yield StepBatches([future.result() for future in futures], sources, counts)
        finally:
            for futures, _, _ in waiting:
                for future in futures:
                    future.cancel()
