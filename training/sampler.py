"""The order of the data: which examples of which source make up each micro-batch.

A pure function of the seed and of how many micro-batches each source has given, so a resumed run
needs only those counts. It knows no rank: a global micro-batch is cut among the ranks afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagebeam.training.config import Phase
from stagebeam.training.examples import ExampleDataset


def phase_steps(phase: Phase, num_ranks: int) -> tuple[int, float]:
    """The phase's optimiser steps, and how many of them make an epoch."""
    sizes = [(len(s.dataset), phase.micro_batch_size(s) * num_ranks) for s in phase.sources]
    per_epoch = sum(-(-size // batch) for size, batch in sizes) / phase.accumulation
    if phase.steps is not None:
        return phase.steps, per_epoch
    assert phase.epochs is not None, "a phase has steps or epochs"
    return math.ceil(phase.epochs * per_epoch), per_epoch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A global micro-batch: the example ids of one source, for all ranks together."""

    source: int
    indices: NDArray[np.int64]

    def for_rank(self, rank: int, num_ranks: int) -> NDArray[np.int64]:
        """This rank's share, contiguous; shares differ by at most one example and may be empty."""
        return np.array_split(self.indices, num_ranks)[rank]


class SourceOrder:
    """One source's global micro-batches, epoch after epoch."""

    def __init__(
        self,
        dataset: ExampleDataset,
        *,
        batch_size: int,
        bucket_batches: int,
        seed: tuple[int, ...],
    ) -> None:
        self._size = len(dataset)
        self._batch_size = batch_size
        self._bucket_batches = bucket_batches
        self._seed = seed
        self._lengths: NDArray[np.int64] | None = None
        if bucket_batches:
            self._lengths = np.fromiter((dataset.length(i) for i in range(self._size)), np.int64)
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    @property
    def batches_per_epoch(self) -> int:
        return -(-self._size // self._batch_size)

    def batch(self, position: int) -> NDArray[np.int64]:
        """The example ids of the source's micro-batch number `position`, over all epochs."""
        epoch, offset = divmod(position, self.batches_per_epoch)
        if epoch != self._epoch:
            self._batches = self._epoch_batches(epoch)
            self._epoch = epoch
        return self._batches[offset]

    def _epoch_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        generator = np.random.Generator(np.random.PCG64([*self._seed, epoch]))
        order = generator.permutation(self._size)
        size = self._batch_size
        if self._lengths is None:
            return [order[i : i + size] for i in range(0, self._size, size)]
        batches: list[NDArray[np.int64]] = []
        window = size * self._bucket_batches
        for start in range(0, self._size, window):
            part = order[start : start + window]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[i : i + size] for i in range(0, len(part), size)]
        return [batches[i] for i in generator.permutation(len(batches))]


class MixtureSampler:
    """Draws a phase's micro-batches from its sources by weight.

    Sources take turns by smooth weighted round robin, so their shares are kept within one
    micro-batch at any time. `counts` is the whole state.
    """

    def __init__(self, phase: Phase, *, seed: int, phase_index: int, num_ranks: int) -> None:
        self._weights = np.array([source.weight for source in phase.sources])
        self._weights = self._weights / self._weights.sum()
        self._orders = [
            SourceOrder(
                source.dataset,
                batch_size=phase.micro_batch_size(source) * num_ranks,
                bucket_batches=phase.bucket_batches,
                seed=(seed, phase_index, index),
            )
            for index, source in enumerate(phase.sources)
        ]
        self.counts = [0] * len(phase.sources)

    def draw(self) -> MicroBatch:
        """The next micro-batch; advances `counts`."""
        total = sum(self.counts) + 1
        source = int(np.argmax(self._weights * total - np.array(self.counts)))
        indices = self._orders[source].batch(self.counts[source])
        self.counts[source] += 1
        return MicroBatch(source, indices)
