"""How far a run has come, in the form a checkpoint keeps, and the wish to stop early."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from stagebeam.engine.errors import CheckpointError
from stagebeam.training.config import Phase

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run stands after `step` optimiser steps.

    phase, phase_step: the current phase and the steps done in it
    counts:            global micro-batches given by each of its sources
    num_tokens:        tokens seen, padding excluded; seconds: spent in the loop, over all sessions
    is_finished:       all phases are done
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    counts: list[int] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    is_finished: bool = False

    def to_state(self, phases: tuple[Phase, ...], num_ranks: int) -> dict[str, Any]:
        """The JSON form, with what the phases looked like."""
        return {**asdict(self), "phases": [_outline(phase, num_ranks) for phase in phases]}

    @classmethod
    def from_state(
        cls, state: dict[str, Any], phases: tuple[Phase, ...], num_ranks: int
    ) -> Progress:
        """Read the JSON form; refuses phases whose data order would differ from the saved run's."""
        known = dict(state)
        saved = known.pop("phases")
        progress = cls(**known)
        done = min(progress.phase + 1, len(saved))
        outlines = [_outline(phase, num_ranks) for phase in phases[:done]]
        if outlines != saved[:done]:
            raise CheckpointError(
                f"the checkpoint was trained on {saved[:done]}, this run has {outlines}: resume "
                "with the same data and global batch, or start anew in another output folder"
            )
        progress.is_finished = progress.phase == len(phases)  # phases may have been added
        return progress


class StopRequest:
    """Set by SIGTERM or SIGINT: the run then saves after the current step and ends."""

    def __init__(self) -> None:
        self.is_set = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first signal; a second one acts as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def stop(number: int, frame: object) -> None:
            logger.warning("stopping after this step (signal %d); repeat to stop at once", number)
            self.is_set = True
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _outline(phase: Phase, num_ranks: int) -> dict[str, Any]:
    return {
        "name": phase.name,
        "accumulation": phase.accumulation,
        "bucket_batches": phase.bucket_batches,
        "sources": [
            [s.name, len(s.dataset), s.weight, phase.micro_batch_size(s) * num_ranks]
            for s in phase.sources
        ],
    }
