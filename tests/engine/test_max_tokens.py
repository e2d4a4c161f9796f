"""A question's max_tokens against a plan's own limits."""

from __future__ import annotations

import pytest

from stagebeam.engine.params import SamplingParams, SearchParams
from stagebeam.engine.scheduler import stage_widths
from stagebeam.engine.stages import Stage, StagePlan


@pytest.mark.parametrize(
    ("limit", "own", "asked", "expected"),
    [(9, None, 20, 9), (9, None, 4, 4), (None, None, 4, 4), (9, 3, 4, 9), (None, 3, 4, 3)],
)
def test_the_smaller_counts_unless_a_stage_samples_its_own_way(
    limit: int | None, own: int | None, asked: int, expected: int
) -> None:
    sampling = None if own is None else SamplingParams(max_tokens=own)
    stage = Stage(name="a", tag="A", criterion="x", max_tokens=limit, sampling=sampling)
    plan = StagePlan(stages=(stage,))
    search = SearchParams(beam_size=3)
    assert stage_widths(search, plan, asked) == [(3, expected)]


def test_a_question_may_ask_for_fewer_tokens_than_its_plan(engine, image, free_sampling) -> None:
    plan = StagePlan(stages=(Stage(name="a", tag="A", criterion="x", max_tokens=9),))
    sampling = free_sampling(4, ignore_eos=True)
    answer = engine.answer("how many?", image, plan=plan, sampling=sampling)
    assert {len(c.token_ids) for c in answer.stages[0].candidates} == {4}
