"""What a search policy may ask the engine for.

A policy is a generator that yields these and is sent the results; it never sees a block, a tensor
or a model. `Policy` is its type: it yields requests and returns a `SearchResult`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from stagebeam.engine.branch import Branch
from stagebeam.engine.outputs import SearchResult
from stagebeam.engine.params import SamplingParams
from stagebeam.engine.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """Where a sample ends, besides end of sequence and `max_tokens`.

    goals:  strings that end it well ("tag"); bytes after one inside its last token stay with it
    wrong:  strings that end it as "wrong_tag"
    stage:  whose tags are stripped for `Branch.inner`; None leaves the text as it is
    """

    goals: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    stage: Stage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Fork `prefix` into `n` branches and decode them as one batch. Answered by `list[Branch]`.

    name:         what events call it (the stage's name, "answer" or "sentence")
    stage, round: place in the search, for the branches' uids; candidate i has uid
                  `branch_uid(stage, first_index + i, round)`
    The branches stay live until committed or released.
    """

    prefix: Branch
    n: int
    until: Until
    sampling: SamplingParams
    name: str
    stage: int
    round: int = 0
    first_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two candidate texts to compare, in this order.

    index: place among the pairs that the stage's candidates can form; a generated verdict is
           sampled with `verdict_uid(stage, index, round)`, so it does not depend on the schedule
    """

    first: str
    second: str
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compare pairs in one round. Answered by `list[Verdict]`, one a pair.

    hints: (name, text) of what the judge is told beside the question
    stage, round: place in the search, for generated verdicts' sampling
    """

    pairs: tuple[Pair, ...]
    criterion: str
    hints: tuple[tuple[str, str], ...] = ()
    stage: int = 0
    round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judged pair.

    log_odds: that the first is better, mean over the orders asked; +-inf where a verdict was
              generated text
    is_disagreement: the two orders picked different sides
    is_malformed: a generated verdict that named neither response (it counts for the second)
    """

    log_odds: float
    is_disagreement: bool = False
    is_malformed: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Ask, text only, whether each reasoning is correct. Answered by `list[bool]`.

    indices: the candidates the reasonings come from; a generated gate is sampled with
             `gate_uid(stage, index, round)`
    """

    reasonings: tuple[str, ...]
    indices: tuple[int, ...]
    hints: tuple[tuple[str, str], ...] = ()
    stage: int = 0
    round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score branches with the question's external scorer. Answered by `list[float]`.

    texts: the whole answer so far with each branch, prefix included
    """

    branches: tuple[Branch, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Make `branch` the trunk and free every other live branch of this question. Answered by None."""

    branch: Branch


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Free these branches. Answered by None."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Tell listeners of a played match (`MatchJudged`) or a committed stage. Answered by None."""

    event: Any


Request = Sample | Judge | Gate | Score | Commit | Release | Report
Policy = Generator[Request, Any, SearchResult]
