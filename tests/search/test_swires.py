"""Stage-wise retracing against a transcription of its description, on random scripted models."""

from __future__ import annotations

import random

import pytest

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import (
    SWIRES_RELEASE,
    JudgeParams,
    SamplingParams,
    SearchParams,
    SwiresParams,
)
from stagebeam.engine.search.policies import make_policy
from stagebeam.engine.search.requests import Judge, Sample, Score, Until
from stagebeam.engine.stages import LLAVA_COT_PLAN


def policy_of(params: SwiresParams):
    return make_policy(
        "How many?",
        LLAVA_COT_PLAN,
        SearchParams(strategy="swires", swires=params),
        SamplingParams(),
        JudgeParams(),
        5,
    )


class Draws:
    """The scripted model's candidates by stage, round and index."""

    def __init__(self, model):
        self.model = model

    def __call__(self, so_far, stage, round, index):
        sample = type("Place", (), {})()
        sample.stage, sample.round = stage, round
        sample.name = LLAVA_COT_PLAN.stages[stage].name
        sample.until = Until(goals=(), stage=LLAVA_COT_PLAN.stages[stage])
        text, _, ending = self.model.candidate(so_far, sample, index)
        return so_far + text, ending


def reference(model, params):
    """(text of the answer, its end, rounds played)."""
    draw = Draws(model)
    summary, ending = draw("", 0, 0, 0)
    if ending != "tag":
        return summary, ending, 0
    pool = []
    fallback = None
    for round in range(params.max_rounds):
        captions = [draw(summary, 1, round, i) for i in range(params.num_captions)]
        good = [text for text, end in captions if end == "tag"]
        good.sort(key=model.score, reverse=True)
        each = params.num_captions // params.keep
        reasonings = [
            draw(caption, 2, round, place * each + i)
            for place, caption in enumerate(good[: params.keep])
            for i in range(each)
        ]
        if fallback is None or fallback[2] == 1:
            fallback = (*reasonings[0], 2) if reasonings else fallback or (*captions[0], 1)
        pool += [text for text, end in reasonings if end == "tag"]
        pool.sort(key=model.score, reverse=True)
        needed = 1 if params.stop_on == "best" else 2
        if len(pool) >= needed and model.score(pool[needed - 1]) > params.cutoff:
            break
    if not pool:
        return fallback[0], fallback[1], round + 1
    count = params.num_conclusions or params.keep
    ends = [draw(text, 3, 0, i) for i, text in enumerate(pool[:count])]
    sound = [end for end in ends if end[1] == "tag"]
    text, ending = max(sound, key=lambda end: model.score(end[0])) if sound else ends[0]
    return text, ending, round + 1


def test_swires_equals_its_description(scripted):
    rounds_seen = set()
    for number in range(400):
        rng = random.Random(number)
        num_captions = rng.randint(1, 6)
        params = SwiresParams(
            num_captions=num_captions,
            keep=rng.randint(1, num_captions),
            num_conclusions=rng.choice([None, 1, 3]),
            max_rounds=rng.randint(1, 5),
            cutoff=rng.choice([-0.2431, 1.0, 9.0]),
            stop_on=rng.choice(["best", "second_best"]),
        )
        script = {"seed": number, "broken": rng.choice([0.0, 0.3, 0.8])}
        model = scripted(**script)
        result = model.run(policy_of(params))
        text, ending, num_rounds = reference(scripted(**script), params)
        assert (result.text, result.finish_reason) == (text, ending), number
        assert list(model.live.values()) == [text]
        assert not model.asked(Judge)
        captions = [s for s in model.asked(Sample) if s.stage == 1]
        assert [s.round for s in captions] == list(range(num_rounds))
        places = [
            (s.stage, s.round, s.first_index + i) for s in model.asked(Sample) for i in range(s.n)
        ]
        assert len(set(places)) == len(places)  # no two branches share their draws
        rounds_seen.add(num_rounds)
        for stage in result.stages[1:]:
            for candidate in stage.candidates:
                assert (candidate.score is None) == (candidate.finish_reason != "tag")
    assert rounds_seen >= {1, 2, 3, 4, 5}


def test_all_that_was_tried_is_in_the_result(scripted):
    model = scripted(seed=1)
    result = model.run(policy_of(SwiresParams(cutoff=99.0)))
    assert [stage.name for stage in result.stages] == [s.name for s in LLAVA_COT_PLAN.stages]
    assert [len(stage.candidates) for stage in result.stages] == [1, 12, 12, 2]
    chosen = [stage.candidates[stage.winner].text for stage in result.stages]
    assert "".join(chosen) == result.text


def test_the_presets():
    paper = SwiresParams()
    assert (paper.num_captions, paper.keep, paper.max_rounds, paper.cutoff) == (4, 2, 3, -0.2431)
    assert paper.cutoff == pytest.approx(-0.77 + 0.2533 * 2.08, abs=1e-4)
    assert (SWIRES_RELEASE.max_rounds, SWIRES_RELEASE.num_conclusions) == (5, 3)
    assert (paper.stop_on, SWIRES_RELEASE.stop_on) == ("best", "second_best")


@pytest.mark.parametrize("scores", [[1.0], [float("nan")] * 4, [1.0] * 5])
def test_a_scorer_that_answers_wrongly_is_a_clear_error(scripted, scores):
    model = scripted(seed=2)
    policy = policy_of(SwiresParams())
    request = policy.send(None)
    while not isinstance(request, Score):
        request = policy.send(model.answer(request))
    with pytest.raises(InvalidInputError, match="one finite number for each of 4 texts"):
        policy.send(scores)
