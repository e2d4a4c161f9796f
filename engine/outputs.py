"""What the engine gives back: answers, stages, matches, usage and timings, as plain data."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stagebeam.engine.branch import Branch, FinishReason
from stagebeam.engine.report import write_report

MatchKind = Literal["judged", "identical", "malformed", "gate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One pairwise comparison.

    first, second: candidate indices; winner is one of them
    probability:   that the first is better, mean of both orders' log-odds, and of the votes' where
                   they count, through a sigmoid;
                   1.0 or 0.0 where the verdict was generated text or no judge was asked, 0.5 where
                   that is a tie
    kind:          "judged"; "identical" texts, a "malformed" side or a failed "gate" are decided
                   without comparing
    is_tie:        neither side is better; the lower index wins
    is_disagreement: the two orders picked different sides
    is_malformed_verdict: a generated verdict that named neither response
    """

    first: int
    second: int
    winner: int
    probability: float
    kind: MatchKind = "judged"
    is_disagreement: bool = False
    is_malformed_verdict: bool = False
    is_tie: bool = False
    verdict_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One candidate of a stage, as it stands in the answer.

    A stage parsed out of a whole answer has no tokens of its own: () and None.
    """

    text: str
    inner: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None
    finish_reason: FinishReason
    score: float | None = None

    @classmethod
    def from_branch(cls, branch: Branch, score: float | None = None) -> Candidate:
        return cls(
            text=branch.text,
            inner=branch.inner,
            token_ids=branch.token_ids,
            cumulative_logprob=branch.cumulative_logprob,
            finish_reason=branch.finish_reason,
            score=score,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One stage (or sentence, or whole answer): its candidates, their matches, the winner's index."""

    name: str
    candidates: tuple[Candidate, ...]
    matches: tuple[Match, ...] = ()
    winner: int = 0

    @property
    def text(self) -> str:
        """The winner's inner text."""
        return self.candidates[self.winner].inner


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a policy returns: the stages in order, the trunk it committed and how the search ended."""

    stages: tuple[StageResult, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(slots=True, kw_only=True)
class Usage:
    """Counts for one question; blocks are KV blocks of `block_size` tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0  # sampled by branches, losers included
    judge_prompt_tokens: int = 0  # prefilled for judging, shared parts counted once
    judge_completion_tokens: int = 0  # generated verdicts and gates
    image_encodes: int = 0
    prefill_passes: int = 0
    decode_steps: int = 0  # steps in which this question had a live branch
    judge_rounds: int = 0
    judge_calls: int = 0  # prompts scored or verdicts generated, both orders and gates counted
    malformed_verdicts: int = 0
    disagreements: int = 0
    ties: int = 0
    identical_matches: int = 0
    malformed_candidates: int = 0
    peak_blocks: int = 0  # most blocks held at once, trunk, branches and judge prompts
    peak_blocks_unshared: int = 0  # what they would be without sharing


@dataclass(slots=True, kw_only=True)
class Timings:
    """Seconds for one question by phase; a shared step's time is split evenly over its questions."""

    queue: float = 0.0
    image_encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    judge: float = 0.0
    total: float = 0.0
    time_to_first_token: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one question.

    text:          the committed trunk's text, all stages with their tags
    conclusion:    the reply to the user, or "" where the search ended before one
    finish_reason: "tag" when every stage closed well; else why the last one did not
    seed:          the seed used, also where it was derived
    image_png:     the image as PNG for the report, or None for a text question
    """

    question: str
    text: str
    conclusion: str
    stages: tuple[StageResult, ...]
    finish_reason: FinishReason
    seed: int
    strategy: str
    beam_size: int
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    image_png: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready plain data, without the image."""
        data = asdict(self)
        del data["image_png"]
        return data

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page that shows the image, the search tree and the timings."""
        write_report(self.to_dict(), path, image_png=self.image_png)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sample of `Engine.generate`, vLLM's meanings of the names: `text` ends before a stop
    string, "stop" is a stop string or an end of sequence.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOutput:
    """The samples of one prompt."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[Completion, ...]
    seed: int
