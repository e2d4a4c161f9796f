"""Plain sampling as a policy: n samples of one prompt, no stage and no judge."""

from __future__ import annotations

from stagebeam.engine.branch import ROOT, Branch
from stagebeam.engine.events import Done
from stagebeam.engine.outputs import (
    Candidate,
    Completion,
    GenerateOutput,
    SearchResult,
    StageResult,
)
from stagebeam.engine.params import SamplingParams
from stagebeam.engine.question import Question
from stagebeam.engine.search.requests import Policy, Sample, Until


def generate_policy(sampling: SamplingParams, until: Until) -> Policy:
    """Sample `sampling.n` continuations of the prompt."""
    branches: list[Branch] = yield Sample(
        prefix=ROOT, n=sampling.n, until=until, sampling=sampling, name="sample", stage=0
    )
    candidates = tuple(Candidate.from_branch(branch) for branch in branches)
    return SearchResult(
        stages=(StageResult(name="sample", candidates=candidates),),
        text=branches[0].text,
        token_ids=branches[0].token_ids,
        finish_reason=branches[0].finish_reason,
    )


def finish_generate(question: Question, result: SearchResult) -> None:
    """Give the samples to the caller under vLLM's names."""
    outputs = []
    for index, candidate in enumerate(result.stages[0].candidates):
        text = candidate.text
        ends = [text.find(stop) for stop in question.sampling.stop if stop in text]
        outputs.append(
            Completion(
                index=index,
                text=text[: min(ends)] if ends else text,
                token_ids=candidate.token_ids,
                cumulative_logprob=candidate.cumulative_logprob or 0.0,
                finish_reason="length" if candidate.finish_reason == "length" else "stop",
            )
        )
    question.handle.finish(
        GenerateOutput(
            prompt=question.text,
            prompt_token_ids=tuple(question.prompt_ids),
            outputs=tuple(outputs),
            seed=question.seed,
        ),
        Done(answer=None),
    )
