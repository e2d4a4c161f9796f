"""One sampled (or greedy) answer in a single pass, read into its stages afterwards."""

from __future__ import annotations

from dataclasses import replace

from stagebeam.engine.branch import Branch, FinishReason
from stagebeam.engine.events import StageCommitted
from stagebeam.engine.outputs import Candidate, SearchResult, StageResult
from stagebeam.engine.search.context import SearchContext
from stagebeam.engine.search.requests import Commit, Policy, Report
from stagebeam.engine.stages import StagePlan


def single(context: SearchContext) -> Policy:
    """Sample one whole answer, up to the last stage's closing tag."""
    sampling = context.sampling
    if context.search.strategy == "greedy":
        sampling = replace(sampling, temperature=0.0)
    answers: list[Branch] = yield context.sample_answer(1, sampling)
    answer = answers[0]
    yield Commit(branch=answer)
    yield Report(event=StageCommitted(stage="answer", winner=0, text=answer.inner))
    return SearchResult(
        stages=parse_stages(context.plan, answer.text, answer.finish_reason),
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
    )


def parse_stages(
    plan: StagePlan, text: str, finish_reason: FinishReason
) -> tuple[StageResult, ...]:
    """The stages found in a whole answer, in the plan's order; their texts concatenate to `text`.

    A stage that the answer leaves out is left out. Text after the last closed stage is the stage
    that it opens, else the one that was due, and ends as the answer did.
    """
    results: list[StageResult] = []
    start = 0
    due = plan.stages[0]
    for index, stage in enumerate(plan.stages):
        opening = text.find(stage.open_tag, start)
        closing = text.find(stage.close_tag, max(opening, start))
        if opening < 0:
            continue
        due = stage
        if closing < 0:
            break
        end = closing + len(stage.close_tag)
        results.append(
            _parsed(stage.name, text[start:end], stage.inner_text(text[opening:]), "tag")
        )
        start = end
        due = plan.stages[min(index + 1, len(plan.stages) - 1)]
    rest = text[start:]
    is_closed = bool(results) and results[-1].name == plan.stages[-1].name
    if results and (is_closed or not rest.strip()):
        last = results.pop()
        results.append(_parsed(last.name, last.candidates[0].text + rest, last.text, "tag"))
    else:
        ended: FinishReason = "wrong_tag" if finish_reason == "tag" else finish_reason
        results.append(_parsed(due.name, rest, due.inner_text(rest), ended))
    return tuple(results)


def _parsed(name: str, text: str, inner: str, finish_reason: FinishReason) -> StageResult:
    candidate = Candidate(
        text=text,
        inner=inner,
        token_ids=(),
        cumulative_logprob=None,
        finish_reason=finish_reason,
    )
    return StageResult(name=name, candidates=(candidate,))
