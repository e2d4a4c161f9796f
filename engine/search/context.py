"""What every policy knows of its question, and the trunk that it grows.

Turns plan, search and sampling parameters into requests; makes no choice of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stagebeam.engine.branch import ROOT, Branch, FinishReason
from stagebeam.engine.events import StageCommitted
from stagebeam.engine.judge.prompts import pair_text
from stagebeam.engine.judge.tournament import Contest
from stagebeam.engine.outputs import Candidate, Match, SearchResult, StageResult
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.search.requests import Commit, Report, Request, Sample, Until
from stagebeam.engine.stages import StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchContext:
    """One question, as a policy sees it."""

    question: str
    plan: StagePlan
    search: SearchParams
    sampling: SamplingParams
    judge: JudgeParams
    seed: int

    def sample_stage(
        self, prefix: Branch, index: int, n: int, round: int = 0, first_index: int = 0
    ) -> Sample:
        """Ask for n candidates of stage `index`, which end at its closing tag."""
        stage = self.plan.stages[index]
        others = tuple(tag for tag in self.plan.close_tags if tag != stage.close_tag)
        sampling = stage.sampling or self.sampling
        if stage.max_tokens is not None:
            own = stage.sampling is not None
            limit = stage.max_tokens if own else min(stage.max_tokens, sampling.max_tokens)
            sampling = replace(sampling, max_tokens=limit)
        return Sample(
            prefix=prefix,
            n=n,
            until=Until(goals=(stage.close_tag,), wrong=others, stage=stage),
            sampling=sampling,
            name=stage.name,
            stage=index,
            round=round,
            first_index=first_index,
        )

    def sample_answer(self, n: int, sampling: SamplingParams) -> Sample:
        """Ask for n whole answers, which end at the last stage's closing tag and at no other."""
        until = Until(goals=(self.plan.close_tags[-1],))
        return Sample(prefix=ROOT, n=n, until=until, sampling=sampling, name="answer", stage=0)

    def stage_contest(self, index: int, known: Sequence[StageResult]) -> Contest:
        """The contest among stage `index`'s candidates, given the stages before it."""
        stage = self.plan.stages[index]
        texts = {result.name: result.text for result in known}
        return self.contest(
            stage.name,
            stage.criterion,
            hints=tuple((name, texts[name]) for name in stage.hints),
            has_gate=stage.has_gate and self.judge.has_gate,
            stage=index,
        )

    def contest(
        self,
        name: str,
        criterion: str,
        *,
        hints: tuple[tuple[str, str], ...] = (),
        has_gate: bool = False,
        stage: int = 0,
        round: int = 0,
    ) -> Contest:
        """A contest by this question's judge."""
        prompt = pair_text(self.plan.prompts, criterion, self.question, hints, "", "")
        return Contest(
            name=name,
            criterion=criterion,
            judge=self.judge,
            seed=self.seed,
            hints=hints,
            has_gate=has_gate,
            stage=stage,
            round=round,
            prompt_chars=len(prompt),
        )


@dataclass(slots=True, kw_only=True)
class Trunk:
    """The committed prefix: its last branch, the stages that led to it, its text and tokens."""

    branch: Branch = ROOT
    stages: list[StageResult] = field(default_factory=list)
    text: str = ""
    token_ids: tuple[int, ...] = ()

    def commit(
        self, name: str, branches: Sequence[Branch], winner: int, matches: tuple[Match, ...] = ()
    ) -> Generator[Request, Any, None]:
        """Append a stage's winner and let the others go."""
        self.branch = branches[winner]
        yield Commit(branch=self.branch)
        candidates = tuple(Candidate.from_branch(branch) for branch in branches)
        yield from self.append(
            StageResult(name=name, candidates=candidates, matches=matches, winner=winner)
        )

    def append(self, result: StageResult) -> Generator[Request, Any, None]:
        """Record a stage whose winner is committed."""
        self.stages.append(result)
        self.text += result.candidates[result.winner].text
        self.token_ids += result.candidates[result.winner].token_ids
        yield Report(
            event=StageCommitted(stage=result.name, winner=result.winner, text=result.text)
        )

    def result(self, finish_reason: FinishReason) -> SearchResult:
        return SearchResult(
            stages=tuple(self.stages),
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=finish_reason,
        )
