"""What happens while a question runs, as plain data: one schema for Python, C and the server.

Owns the events and their JSON form (docs/events.md), in which keys are added but never renamed or
removed. Invariant: a question's events end with exactly one `Done` or `Failed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stagebeam.engine.branch import FinishReason
from stagebeam.engine.errors import CancelledError, CapacityError, DeadlineError, ListenerError
from stagebeam.engine.outputs import Answer, Match

FailureCode = Literal["cancelled", "deadline", "capacity", "invalid", "listener", "internal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """Branches begin: candidates first_candidate .. first_candidate + num_candidates - 1.

    round: counts from 0 where a search samples a stage again (`swires`) or goes by sentences;
           `candidate` is unique within a stage and round
    """

    stage: str
    round: int = 0
    first_candidate: int = 0
    num_candidates: int
    type: str = "stage_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """New text of one candidate; the pieces of a candidate concatenate to its text.

    token_ids, logprobs: the tokens that this text completes, and each one's natural log probability
                         untempered; tokens without text (an end of sequence) are in the answer only
    """

    stage: str
    round: int = 0
    candidate: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    type: str = "token_text"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFinished:
    stage: str
    round: int = 0
    candidate: int
    finish_reason: FinishReason
    type: str = "candidate_finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchJudged:
    """A played match: the pair, the probability that the first is better, and the winner."""

    stage: str
    match: Match
    type: str = "match_judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCommitted:
    """A stage's winner joins the trunk.

    winner: index in the answer's list of the stage's candidates; text: its inner text
    """

    stage: str
    winner: int
    text: str
    type: str = "stage_committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The last event of a question that ended well; plain sampling has no answer."""

    answer: Answer | None
    type: str = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last event of any other question.

    error: the exception's class and words
    code:  "cancelled" (also by closing the engine), "deadline", "capacity", "invalid" (the caller's
           fault), "listener" (the question's own `on_event` raised) or "internal"
    """

    error: str
    code: FailureCode = "internal"
    type: str = "failed"


Event = StageStarted | TokenText | CandidateFinished | MatchJudged | StageCommitted | Done | Failed
Listener = Callable[[Event], object]


def failed(error: BaseException) -> Failed:
    """The event that tells of `error`."""
    return Failed(error=f"{type(error).__name__}: {error}", code=_code(error))


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as JSON-ready plain data, its `type` first."""
    if isinstance(event, Done):
        answer = None if event.answer is None else event.answer.to_dict()
        return {"type": event.type, "answer": answer}
    data = asdict(event)
    return {"type": data.pop("type"), **data}


def _code(error: BaseException) -> FailureCode:
    match error:
        case DeadlineError():
            return "deadline"
        case CancelledError():
            return "cancelled"
        case ListenerError():
            return "listener"
        case CapacityError():
            return "capacity"
        case ValueError():
            return "invalid"
    return "internal"
