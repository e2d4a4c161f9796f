"""A phase of the bundled checkpoint's training from a table: each task's share and rows."""

from __future__ import annotations

from pathlib import Path

from stagebeam.training.config import Phase, Schedule, Source
from stagebeam.training.examples import ExampleDataset
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.own_mistakes import OwnMistakes
from stagebeam.training.shapes.streams import EasyStream, ShapesStream
from stagebeam.training.world import num_ranks

DATA_SEED = 1
STREAM_SIZE = 200_000  # examples in an epoch of a stream; far more than a phase draws
# task: (share of the micro-batches, items in one over all ranks; a judge's pair is one item of two rows)
Mixture = dict[str, tuple[float, int]]


def mixed_phase(
    encoder: ChatEncoder,
    name: str,
    mixture: Mixture,
    *,
    steps: int,
    rate: float,
    warmup: int = 0,
    falls: bool = False,
    mistakes: Path | None = None,
) -> Phase:
    """A phase of `steps` at `rate` after `warmup`; falls: to zero by a cosine.

    mistakes: the model's own (own_mistakes.py), for the task "judge-own"
    """
    sources = tuple(
        Source(
            name=task,
            dataset=_dataset(encoder, task, mistakes),
            weight=weight,
            batch_size=max(1, rows // num_ranks()),
        )
        for task, (weight, rows) in mixture.items()
    )
    schedule = Schedule(kind="cosine" if falls else "constant", warmup_steps=warmup)
    return Phase(
        name=name,
        sources=sources,
        steps=steps,
        learning_rate=rate,
        schedule=schedule,
        bucket_batches=16,
    )


def _dataset(encoder: ChatEncoder, task: str, mistakes: Path | None) -> ExampleDataset:
    if task == "easy":
        return EasyStream(encoder, seed=DATA_SEED)
    if task == "judge-own":
        assert mistakes is not None, "they have been collected"
        return OwnMistakes(mistakes, encoder)
    return ShapesStream(task, encoder, seed=DATA_SEED, size=STREAM_SIZE)
