"""Policies against an independent transcription of the published pseudo-code.

1,000 random scripted models, each with its own plan, width, tournament, mode and faults: the same
winners and the same matches, whatever the schedule.
"""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest

from stagebeam.bindings._core import philox4x32
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.search.policies import make_policy
from stagebeam.engine.search.requests import Judge, Pair, Until
from stagebeam.engine.stages import Stage, StagePlan

NUM_MODELS = 1000


def random_case(number: int):
    """A plan and parameters drawn from `number`."""
    rng = random.Random(number)
    names = ["summary", "caption", "reasoning", "conclusion"][: rng.randint(1, 4)]
    stages = [
        Stage(
            name=name,
            tag=name.upper(),
            criterion=f"suits {name}",
            hints=tuple(earlier for earlier in names[:i] if rng.random() < 0.5),
            is_judged=rng.random() < 0.9,
            has_gate=rng.random() < 0.5,
            beam_size=rng.choice([None, None, 1, 3]),
        )
        for i, name in enumerate(names)
    ]
    judge = {
        "mode": rng.choice(["logits", "generate"]),
        "tournament": rng.choice(["paper", "paper", "knockout", "round_robin"]),
        "gate": rng.choice([None, True, False]),
    }
    return SimpleNamespace(
        plan=StagePlan(stages=stages),
        beam_size=rng.randint(1, 7),
        judge=judge,
        seed=rng.getrandbits(64),
        model={
            "seed": number,
            "mode": judge["mode"],
            "num_words": rng.choice([2, 4, 8]),
            "broken": rng.choice([0.0, 0.0, 0.2, 0.6]),
        },
    )


def reference_search(case, model):
    """The pseudo-code, with the rules for malformed, identical and gated candidates."""
    judge = JudgeParams(**case.judge)
    prefix = ""
    inner_texts: dict[str, str] = {}
    outcome = []
    for number, stage in enumerate(case.plan.stages):
        width = stage.beam_size or case.beam_size
        place = SimpleNamespace(
            stage=number, round=0, name=stage.name, until=Until(goals=(), stage=stage)
        )
        drawn = [model.candidate(prefix, place, i) for i in range(width)]
        hints = tuple((name, inner_texts[name]) for name in stage.hints)
        matches = []

        def meet(a, b, drawn=drawn, stage=stage, number=number, hints=hints, matches=matches):
            winner, kind = decide(a, b, drawn, stage, number, hints)
            matches.append((a, b, winner, kind))
            return winner

        def decide(a, b, drawn, stage, number, hints):
            (_, text_a, end_a), (_, text_b, end_b) = drawn[a], drawn[b]
            if end_a != "tag" or end_b != "tag":
                if end_a == "tag":
                    return a, "malformed"
                if end_b == "tag":
                    return b, "malformed"
                return min(a, b), "malformed"
            if text_a == text_b:
                return min(a, b), "identical"
            sound = [text for _, text, end in drawn]
            first_a = min(i for i, d in enumerate(drawn) if d[1] == text_a)
            first_b = min(i for i, d in enumerate(drawn) if d[1] == text_b)
            if stage.has_gate and judge.has_gate:
                request = SimpleNamespace(stage=number, hints=hints)
                well = [i for i, d in enumerate(drawn) if d[2] == "tag"]
                for text, loser, other in ((text_a, a, b), (text_b, b, a)):
                    lowest = min(i for i in well if sound[i] == text)
                    if not model.passes(request, text, lowest):
                        assert loser != other
                        return other, "gate"
            request = SimpleNamespace(stage=number, round=0, criterion=stage.criterion, hints=hints)
            index = first_a * len(drawn) + first_b
            odds = model.log_odds(request, Pair(first=text_a, second=text_b, index=index))
            if odds == 0:
                return min(a, b), "judged"
            return (a if odds > 0 else b), "judged"

        if not stage.is_judged:
            good = [i for i, (_, _, end) in enumerate(drawn) if end == "tag"]
            winner = good[0] if good else 0
        elif judge.tournament == "paper":
            pool = list(range(width))
            uid = number << 48
            while len(pool) > 1:
                words = philox4x32(case.seed, (len(matches), 0xFFFFFFFF, uid % 2**32, uid // 2**32))
                a = pool.pop(math.floor(words[0] / 2**32 * len(pool)))
                b = pool.pop(math.floor(words[1] / 2**32 * len(pool)))
                pool.append(meet(a, b))
            winner = pool[0]
        elif judge.tournament == "knockout":
            left = list(range(width))
            while len(left) > 1:
                bye = [left.pop()] if len(left) % 2 == 1 else []
                left = bye + [meet(left[i], left[i + 1]) for i in range(0, len(left), 2)]
            winner = left[0]
        else:
            wins = [0] * width
            for a in range(width):
                for b in range(a + 1, width):
                    wins[meet(a, b)] += 1
            winner = max(range(width), key=lambda i: (wins[i], -i))
        prefix += drawn[winner][0]
        inner_texts[stage.name] = drawn[winner][1]
        outcome.append((stage.name, winner, matches))
        if drawn[winner][2] != "tag":
            break
    return prefix, drawn[winner][2], outcome


def run(case, scripted, schedule):
    model = scripted(**case.model)
    policy = make_policy(
        "How many?",
        case.plan,
        SearchParams(beam_size=case.beam_size),
        SamplingParams(),
        JudgeParams(schedule=schedule, **case.judge),
        case.seed,
    )
    return model, model.run(policy)


@pytest.mark.parametrize("part", range(4))
def test_stage_beam_equals_the_published_pseudo_code(scripted, part):
    for number in range(part, NUM_MODELS, 4):
        case = random_case(number)
        expected_text, expected_end, expected = reference_search(case, scripted(**case.model))
        for schedule in ("all", "played", "auto"):
            model, result = run(case, scripted, schedule)
            got = [
                (
                    stage.name,
                    stage.winner,
                    [
                        (match.first, match.second, match.winner, match.kind)
                        for match in stage.matches
                    ],
                )
                for stage in result.stages
            ]
            assert got == expected, (number, schedule)
            assert (result.text, result.finish_reason) == (expected_text, expected_end)
            assert list(model.live.values()) == [expected_text]


def test_schedules_give_equal_results_and_events(scripted):
    for number in range(0, NUM_MODELS, 5):
        case = random_case(number)
        runs = [run(case, scripted, schedule) for schedule in ("all", "played", "auto")]
        (first_model, first_result), *others = runs
        for model, result in others:
            assert result == first_result
            assert model.events == first_model.events


def test_the_number_of_judge_rounds(scripted):
    for number in range(0, NUM_MODELS, 5):
        case = random_case(number)
        num_stages = len(case.plan.stages)
        model, _ = run(case, scripted, "all")
        for stage in range(num_stages):
            assert sum(request.stage == stage for request in model.asked(Judge)) <= 1
        model, result = run(case, scripted, "played")
        for index, stage in enumerate(result.stages):
            rounds = [request for request in model.asked(Judge) if request.stage == index]
            judged = [match for match in stage.matches if match.kind == "judged"]
            assert len(rounds) <= max(len(stage.candidates) - 1, 0)
            assert sum(len(request.pairs) for request in rounds) <= len(judged)


def test_reported_matches_are_the_results(scripted):
    case = random_case(7)
    model, result = run(case, scripted, "played")
    reported = [event.match for event in model.events if event.type == "match_judged"]
    assert reported == [match for stage in result.stages for match in stage.matches]
    committed = [
        (event.stage, event.winner, event.text)
        for event in model.events
        if event.type == "stage_committed"
    ]
    assert committed == [(stage.name, stage.winner, stage.text) for stage in result.stages]
