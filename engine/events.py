"""What happens while a question runs, as plain data: one schema for Python, C and the server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stagebeam.engine.branch import FinishReason
from stagebeam.engine.outputs import Answer, Match


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    stage: str
    num_candidates: int
    type: str = "stage_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """New text of one candidate; the pieces of a candidate concatenate to its text."""

    stage: str
    candidate: int
    text: str
    type: str = "token_text"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFinished:
    stage: str
    candidate: int
    finish_reason: FinishReason
    type: str = "candidate_finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchJudged:
    stage: str
    match: Match
    type: str = "match_judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCommitted:
    stage: str
    winner: int
    text: str
    type: str = "stage_committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The last event; plain sampling has no answer."""

    answer: Answer | None
    type: str = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    error: str
    type: str = "failed"


Event = StageStarted | TokenText | CandidateFinished | MatchJudged | StageCommitted | Done | Failed


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as JSON-ready plain data, its `type` included."""
    return asdict(event)
