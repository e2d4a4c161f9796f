"""Engines on Ray in the place of one here: the same answers to the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stagebeam.engine.cli.ray_rows import Work, call_once, check_room, map_rows
from stagebeam.engine.engine import Engine
from stagebeam.engine.outputs import Answer
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.stages import StagePlan

QUESTIONS_AT_ONCE = 32  # of an engine; it ends them all before it takes more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What an engine says of itself."""

    path: Path
    plan: StagePlan
    dtype: str
    device: torch.device
    backend: str
    max_branches: int
    default_sampling: SamplingParams


class RayEngines:
    """`num_engines` engines of a connected Ray, opened for one search at a time.

    engine_options: `Engine`'s; the checkpoint's folder must be there on every node
    resources:      of one engine
    """

    def __init__(
        self, engine_options: dict[str, Any], *, num_engines: int, resources: dict[str, float]
    ) -> None:
        check_room(num_engines, resources)
        self._options, self._num_engines, self._resources = engine_options, num_engines, resources
        facts = call_once(partial(_facts, engine_options), resources)
        self.path, self.plan, self.dtype = facts.path, facts.plan, facts.dtype
        self.device, self.backend = facts.device, facts.backend
        self.max_branches, self.default_sampling = facts.max_branches, facts.default_sampling

    def iter_answers(
        self, questions: Sequence[Any], *, search: SearchParams, judge: JudgeParams
    ) -> Iterator[Answer]:
        """As `Engine.iter_answers`."""
        return map_rows(
            partial(_answering, self._options, search, judge),
            questions,
            num_workers=self._num_engines,
            resources=self._resources,
            rows_at_once=QUESTIONS_AT_ONCE,
        )


def _facts(engine_options: dict[str, Any]) -> _Facts:
    with Engine(**engine_options) as engine:
        return _Facts(
            path=Path(engine.path),
            plan=engine.plan,
            dtype=engine.dtype,
            device=engine.device,
            backend=engine.backend,
            max_branches=engine.max_branches,
            default_sampling=engine.default_sampling,
        )


def _answering(engine_options: dict[str, Any], search: SearchParams, judge: JudgeParams) -> Work:
    engine = Engine(**engine_options)
    return lambda questions: engine.answer_many(questions, search=search, judge=judge)
