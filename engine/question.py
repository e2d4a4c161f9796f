"""One question while it runs: its policy, its live branches and what it waits for.

State only; the loop moves it. A branch is its tokens: the sequence id says whether they are cached,
so that a waiting question's blocks can be dropped and prefilled again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from stagebeam.engine.handle import Handle
from stagebeam.engine.judge.asker import Asker
from stagebeam.engine.models.processor import PreparedImage
from stagebeam.engine.outputs import SearchResult, Timings, Usage
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.search.requests import Gate, Judge, Policy, Sample
from stagebeam.engine.stages import StagePlan
from stagebeam.engine.step.batch import ImageRef

Scorer = Callable[[str, Sequence[str]], Sequence[float]]


@dataclass(slots=True, kw_only=True)
class LiveBranch:
    """A branch the loop can go on from.

    token_ids: everything from the prompt's first token
    seq:       pool sequence that holds all but the last token, None where nothing is cached
    carry:     bytes that stand after the goal inside the last token: they belong to the next stage
    """

    key: int
    token_ids: list[int]
    seq: int | None = None
    carry: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """Decode branches in place, each as one more sample of its own (the low-level `decode`)."""

    keys: tuple[int, ...]
    sample: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Prefill a branch, so that its forks share its blocks."""

    key: int


Work = Sample | Continue | Cache | Judge | Gate


@dataclass(slots=True, kw_only=True)
class Question:
    """A question's whole state.

    id:       age; the lower goes first
    deadline: `time.perf_counter()` at which it ends unanswered, None for never
    finish:   builds the answer from the policy's result and gives it to `handle`
    policy:   None for a session, whose caller asks for work itself and waits on `pending`
    request:  what is waited for; `is_in_flight` says whether it has been started
    """

    id: int
    text: str
    prompt_ids: list[int]
    image: PreparedImage | None
    image_position: int | None
    plan: StagePlan
    search: SearchParams
    sampling: SamplingParams
    judge: JudgeParams
    seed: int
    asker: Asker
    handle: Handle
    finish: Callable[[Question, SearchResult], None]
    policy: Policy | None = None
    scorer: Scorer | None = None
    image_ref: ImageRef | None = None
    branches: dict[int, LiveBranch] = field(default_factory=dict)
    next_key: int = 1
    request: Work | None = None
    pending: Future[Any] | None = None
    is_in_flight: bool = False
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    deadline: float | None = None
    submitted_at: float = field(default_factory=time.perf_counter)

    def fork(self, parent: LiveBranch, seq: int | None) -> LiveBranch:
        """A new branch that stands where `parent` does; `seq` is its own."""
        branch = replace(parent, key=self.next_key, token_ids=list(parent.token_ids), seq=seq)
        self.branches[branch.key] = branch
        self.next_key += 1
        return branch

    def cached_seqs(self) -> list[int]:
        return [branch.seq for branch in self.branches.values() if branch.seq is not None]
