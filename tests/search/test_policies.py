"""Each policy on scripted models: what it asks for, overrides, faults and what it returns."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.engine.branch import ROOT
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.search.policies import make_policy
from stagebeam.engine.search.requests import Commit, Judge, Sample
from stagebeam.engine.search.single import parse_stages
from stagebeam.engine.stages import LLAVA_COT_PLAN, Stage, StagePlan

QUESTION = "How many </SUMMARY> tags?"
TAGS = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")


def policy_of(strategy, plan=LLAVA_COT_PLAN, judge=None, sampling=None, seed=11, **search):
    return make_policy(
        QUESTION,
        plan,
        SearchParams(strategy=strategy, **search),
        sampling or SamplingParams(),
        judge or JudgeParams(),
        seed,
    )


# Stage beam


def test_stage_beam_requests_follow_the_plan(scripted):
    model = scripted(seed=1)
    result = model.run(policy_of("stage_beam", beam_size=3))
    samples = model.asked(Sample)
    assert [s.name for s in samples] == ["summary", "caption", "reasoning", "conclusion"]
    assert [(s.stage, s.round, s.first_index, s.n) for s in samples] == [
        (i, 0, 0, 3) for i in range(4)
    ]
    for sample, tag in zip(samples, TAGS, strict=True):
        assert sample.until.goals == (f"</{tag}>",)
        assert set(sample.until.wrong) == {f"</{t}>" for t in TAGS} - {f"</{tag}>"}
        assert sample.until.stage.tag == tag
    commits = model.asked(Commit)
    assert samples[0].prefix == ROOT
    assert [s.prefix for s in samples[1:]] == [c.branch for c in commits[:-1]]
    assert result.finish_reason == "tag"
    assert result.text == "".join(stage.candidates[stage.winner].text for stage in result.stages)
    assert result.token_ids == tuple(result.text.encode())
    assert LLAVA_COT_PLAN.conclusion(result.text) == result.stages[-1].text
    json.dumps(asdict(result))


def test_hints_hold_the_inner_text_of_the_plans_stages(scripted):
    model = scripted(seed=2)
    result = model.run(policy_of("stage_beam", beam_size=4, judge=JudgeParams(schedule="all")))
    text = {stage.name: stage.text for stage in result.stages}
    hints = {request.stage: request.hints for request in model.asked(Judge)}
    assert hints == {
        0: (),
        1: (),
        2: (("caption", text["caption"]),),
        3: (("caption", text["caption"]), ("reasoning", text["reasoning"])),
    }
    for request in model.asked(Judge):
        assert all("<" not in pair.first.replace("<b>", "") for pair in request.pairs)


def test_overrides_of_a_stage(scripted):
    own = SamplingParams(temperature=1.5, max_tokens=7)
    plan = StagePlan(
        stages=(
            Stage(name="a", tag="A", criterion="", is_judged=False, beam_size=5),
            Stage(name="b", tag="B", criterion="x", sampling=own),
            Stage(name="c", tag="C", criterion="x", sampling=own, max_tokens=9, beam_size=1),
            Stage(name="d", tag="D", criterion="x", max_tokens=3),
        )
    )
    endings = {(0, 0, 0): "eos", (0, 0, 1): "length"}
    model = scripted(seed=3, endings=endings)
    result = model.run(policy_of("stage_beam", plan, beam_size=2, sampling=SamplingParams(top_k=4)))
    samples = model.asked(Sample)
    assert [s.n for s in samples] == [5, 2, 1, 2]
    assert [s.sampling for s in samples] == [
        SamplingParams(top_k=4),
        own,
        SamplingParams(temperature=1.5, max_tokens=9),
        SamplingParams(top_k=4, max_tokens=3),
    ]
    first = result.stages[0]
    assert (first.winner, first.matches) == (2, ())  # unjudged: the first that ended well
    assert result.stages[2].matches == ()
    assert not [request for request in model.asked(Judge) if request.stage in (0, 2)]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("ending", ["eos", "length", "wrong_tag", "aborted"])
@pytest.mark.parametrize("is_judged", [True, False])
def test_a_stage_with_only_malformed_candidates_ends_the_search(scripted, stage, ending, is_judged):
    plan = LLAVA_COT_PLAN
    if not is_judged:
        plan = StagePlan(
            stages=tuple(Stage(name=t, tag=t, criterion="", is_judged=False) for t in TAGS)
        )
    endings = {(stage, 0, i): ending for i in range(3)}
    model = scripted(seed=4, endings=endings)
    result = model.run(policy_of("stage_beam", plan, beam_size=3))
    assert result.finish_reason == ending
    assert len(result.stages) == stage + 1
    assert result.stages[-1].winner == 0
    assert list(model.live.values()) == [result.text]
    assert plan.conclusion(result.text) in (result.stages[-1].text if stage == 3 else "", "")


def test_beam_size_one_asks_no_judge(scripted):
    model = scripted(seed=5, mode="generate")
    model.run(policy_of("stage_beam", beam_size=1, judge=JudgeParams(mode="generate")))
    assert {type(request).__name__ for request in model.requests} == {"Sample", "Commit", "Report"}


def test_candidates_do_not_depend_on_the_beam_size(scripted):
    texts = []
    for width in (2, 8):
        model = scripted(seed=6)
        result = model.run(policy_of("stage_beam", beam_size=width))
        texts.append([candidate.text for candidate in result.stages[0].candidates[:2]])
    assert texts[0] == texts[1]


# Single, greedy, best-of-N

WHOLE = (
    "<SUMMARY> plan </SUMMARY>\n\n<CAPTION> two {red} </CAPTION> "
    "<REASONING>1 + 1 = 2.</REASONING><CONCLUSION> 2 </CONCLUSION>"
)


@pytest.mark.parametrize("strategy", ["single", "greedy"])
def test_single_reads_its_answer_into_stages(scripted, strategy):
    model = scripted(texts={(0, 0, 0): WHOLE})
    result = model.run(policy_of(strategy, beam_size=4))
    (sample,) = model.asked(Sample)
    assert (sample.n, sample.name, sample.until.goals) == (1, "answer", ("</CONCLUSION>",))
    assert sample.until.wrong == ()
    assert sample.sampling.temperature == (0.0 if strategy == "greedy" else 0.6)
    assert [(s.name, s.text) for s in result.stages] == [
        ("summary", "plan"),
        ("caption", "two {red}"),
        ("reasoning", "1 + 1 = 2."),
        ("conclusion", "2"),
    ]
    assert result.text == WHOLE == "".join(s.candidates[0].text for s in result.stages)
    assert result.token_ids == tuple(WHOLE.encode())
    assert result.finish_reason == "tag"
    assert not model.asked(Judge)


@pytest.mark.parametrize(
    ("text", "ending", "expected"),
    [
        ("no tags at all", "eos", [("summary", "no tags at all", "eos")]),
        ("", "eos", [("summary", "", "eos")]),
        ("<SUMMARY> a", "length", [("summary", "a", "length")]),
        ("<SUMMARY> a </SUMMARY> \n", "eos", [("summary", "a", "tag")]),
        (
            "<SUMMARY> a </SUMMARY> then <CAPTION> b",
            "length",
            [("summary", "a", "tag"), ("caption", "b", "length")],
        ),
        (
            "<SUMMARY> a </SUMMARY> stray",
            "eos",
            [("summary", "a", "tag"), ("caption", "stray", "eos")],
        ),
        (
            "<SUMMARY> a </SUMMARY><REASONING>r</REASONING><CONCLUSION>c</CONCLUSION>!",
            "tag",
            [("summary", "a", "tag"), ("reasoning", "r", "tag"), ("conclusion", "c", "tag")],
        ),
        ("<CONCLUSION> c </CONCLUSION>", "tag", [("conclusion", "c", "tag")]),
        ("c </CONCLUSION>", "tag", [("summary", "c </CONCLUSION>", "wrong_tag")]),
    ],
)
def test_parse_stages_of_incomplete_answers(text, ending, expected):
    stages = parse_stages(LLAVA_COT_PLAN, text, ending)
    assert [(s.name, s.text, s.candidates[0].finish_reason) for s in stages] == expected
    assert "".join(s.candidates[0].text for s in stages) == text


@given(
    pieces=st.lists(
        st.sampled_from([f"<{t}>" for t in TAGS] + [f"</{t}>" for t in TAGS] + ["x", " ", "\n"]),
        max_size=14,
    )
)
def test_parsed_stages_tile_any_text(pieces):
    text = "".join(pieces)
    stages = parse_stages(LLAVA_COT_PLAN, text, "eos")
    assert "".join(stage.candidates[0].text for stage in stages) == text
    names = [stage.name for stage in stages]
    assert names == sorted(set(names), key=[s.name for s in LLAVA_COT_PLAN.stages].index)


def test_best_of_n_is_one_tournament_of_whole_answers(scripted):
    model = scripted(seed=8, texts={(0, 0, 1): WHOLE}, endings={(0, 0, 2): "eos"})
    result = model.run(policy_of("best_of_n", beam_size=5, judge=JudgeParams(schedule="all")))
    (sample,) = model.asked(Sample)
    assert (sample.n, sample.until.wrong) == (5, ())
    (request,) = model.asked(Judge)
    assert request.criterion == LLAVA_COT_PLAN.prompts.answer_criterion
    assert request.hints == ()
    (stage,) = result.stages
    assert stage.name == "answer"
    assert len(stage.candidates) == 5
    assert len(stage.matches) == 4
    assert stage.winner != 2
    shown = {text for pair in request.pairs for text in (pair.first, pair.second)}
    assert WHOLE in shown  # whole answers are shown as they are
    assert result.text == stage.candidates[stage.winner].text


# Sentence beam


def test_sentence_beam_grows_until_the_closing_tag(scripted):
    texts = {
        (0, 0, 0): "<SUMMARY> One.",
        (0, 0, 1): "<SUMMARY> One.",
        (0, 1, 0): " Two 3.</",
        (0, 1, 1): " Two 3.</",
        (0, 2, 0): "CONCLUSION>",
        (0, 2, 1): "CONCLUSION>",
    }
    endings = dict.fromkeys(texts, "tag") | {(0, 2, 0): "eos", (0, 2, 1): "eos"}
    model = scripted(seed=9, texts=texts, endings=endings)
    result = model.run(policy_of("sentence_beam", beam_size=2))
    samples = model.asked(Sample)
    assert [(s.name, s.stage, s.round) for s in samples] == [
        ("sentence 1", 0, 0),
        ("sentence 2", 0, 1),
        ("sentence 3", 0, 2),
    ]
    assert all(s.until.goals == (".", "</CONCLUSION>") for s in samples)
    # The tag began inside the last sentence's token, so the sample itself ended in EOS.
    assert result.finish_reason == "tag"
    assert result.text == "<SUMMARY> One. Two 3.</CONCLUSION>"


def test_sentence_beam_tells_the_judge_the_answer_so_far(scripted):
    model = scripted(seed=10)
    result = model.run(policy_of("sentence_beam", beam_size=4, max_rounds=6))
    so_far = ""
    by_round = {request.round: request for request in model.asked(Judge)}
    for round, stage in enumerate(result.stages):
        if round in by_round:
            hint = (("answer so far", so_far),) if so_far else ()
            assert by_round[round].hints == hint
            assert by_round[round].criterion == LLAVA_COT_PLAN.prompts.sentence_criterion
        so_far += stage.candidates[stage.winner].text
    assert so_far == result.text


def test_sentence_beam_stops_at_max_rounds_and_at_malformed_sentences(scripted):
    texts = {(0, r, i): f" Sentence {r}." for r in range(9) for i in range(2)}
    endings = dict.fromkeys(texts, "tag")
    model = scripted(texts=texts, endings=endings)
    result = model.run(policy_of("sentence_beam", beam_size=2, max_rounds=4))
    assert (result.finish_reason, len(result.stages)) == ("length", 4)
    endings |= {(0, 1, 0): "eos", (0, 1, 1): "length"}
    model = scripted(texts=texts, endings=endings)
    result = model.run(policy_of("sentence_beam", beam_size=2, max_rounds=4))
    assert (result.finish_reason, len(result.stages)) == ("eos", 2)


@pytest.mark.parametrize("seed", range(30))
def test_every_strategy_leaves_one_live_branch(scripted, seed):
    for strategy in ("greedy", "single", "best_of_n", "sentence_beam", "stage_beam", "swires"):
        model = scripted(seed=seed, broken=0.3)
        result = model.run(policy_of(strategy, beam_size=3, max_rounds=8, seed=seed))
        assert list(model.live.values()) == [result.text]
        assert result.text == "".join(s.candidates[s.winner].text for s in result.stages)


def test_swires_needs_three_stages():
    plan = StagePlan(stages=LLAVA_COT_PLAN.stages[:2])
    with pytest.raises(InvalidInputError, match="last three stages"):
        policy_of("swires", plan)
