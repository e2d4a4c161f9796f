"""The user's faults are clear errors, and however a question ends it holds nothing afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from stagebeam import Engine, SamplingParams, SearchParams, Stage, StagePlan
from stagebeam.engine.errors import CancelledError, CapacityError, ImageError, InvalidInputError
from stagebeam.engine.events import CandidateFinished, Done, Failed, StageCommitted, TokenText

SHORT = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=100, seed=5)


@pytest.mark.parametrize("text", ["", "   ", [], 5, [{"role": "assistant", "content": "x"}]])
def test_questions_that_are_none(idle: Engine, text: object) -> None:
    with pytest.raises(InvalidInputError):
        idle.answer(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [b"not an image", "no/such/file.png", 5])
def test_images_that_are_none(idle: Engine, image: object) -> None:
    with pytest.raises(ImageError):
        idle.answer("what?", image)  # type: ignore[arg-type]


def test_an_image_token_in_the_question(idle: Engine, scene: Image.Image) -> None:
    with pytest.raises(InvalidInputError, match="image token"):
        idle.answer("what is <|image|> this?", scene)
    with pytest.raises(InvalidInputError, match="image"):
        idle.answer("what is <|image|> this?")


def test_a_prompt_longer_than_the_context(idle: Engine) -> None:
    with pytest.raises(CapacityError, match="no room in the context"):
        idle.answer("word " * 5000)


def test_a_question_that_can_never_fit_is_refused_with_the_arithmetic() -> None:
    with (
        Engine(kv_cache_bytes=1 << 18) as engine,
        pytest.raises(CapacityError, match=r"may need \d+ KV blocks of 16 tokens .* cache has"),
    ):
        engine.answer("what?", search=SearchParams(beam_size=60))


@pytest.mark.parametrize("beam_size", [0, -1, 1.5, True, "4"])
def test_beam_sizes_that_are_none(beam_size: object) -> None:
    with pytest.raises(InvalidInputError, match="beam_size"):
        SearchParams(beam_size=beam_size)  # type: ignore[arg-type]


def test_more_branches_than_rows(idle: Engine) -> None:
    with pytest.raises(CapacityError, match="max_branches"):
        idle.answer("what?", search=SearchParams(beam_size=65))


def test_unknown_strategy_and_missing_scorer(idle: Engine) -> None:
    with pytest.raises(InvalidInputError, match="strategy"):
        SearchParams(strategy="mcts")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="scorer"):
        idle.answer("what?", search=SearchParams(strategy="swires"))


def test_a_stage_plan_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"plan\.json"):
        StagePlan.from_json(path)


def test_a_failing_scorer_ends_its_question_only(idle: Engine, scene: Image.Image) -> None:
    def scorer(question: str, texts: Sequence[str]) -> list[float]:
        raise RuntimeError("the scorer broke")

    search = SearchParams(strategy="swires")
    with pytest.raises(RuntimeError, match="the scorer broke"):
        idle.answer(
            "How many crosses are there?", scene, search=search, scorer=scorer, sampling=SHORT
        )
    assert idle.answer("How many crosses are there?", scene, sampling=SHORT).seed == 5


def test_a_stage_that_runs_out_of_tokens(idle: Engine, scene: Image.Image) -> None:
    plan = StagePlan(stages=(Stage(name="all", tag="ALL", criterion="is better", max_tokens=3),))
    answer = idle.answer("What is at the center?", scene, plan=plan, sampling=SHORT)
    assert answer.finish_reason == "length"
    assert answer.conclusion == ""
    assert {c.finish_reason for c in answer.stages[0].candidates} == {"length"}


def test_a_stage_that_closes_the_wrong_tag(idle: Engine, scene: Image.Image) -> None:
    plan = StagePlan(
        stages=(
            Stage(name="late", tag="REASONING", criterion="is better"),
            Stage(name="early", tag="SUMMARY", criterion="is better"),
        )
    )
    answer = idle.answer("What is at the center?", scene, plan=plan, sampling=SHORT)
    assert answer.finish_reason == "wrong_tag"
    assert len(answer.stages) == 1


def test_a_stage_that_ends_in_eos(idle: Engine, scene: Image.Image) -> None:
    plan = StagePlan(stages=(Stage(name="none", tag="NOWHERE", criterion="is better"),))
    greedy = SamplingParams(temperature=0.0, max_tokens=400)
    answer = idle.answer("What is at the center?", scene, plan=plan, sampling=greedy)
    assert answer.finish_reason == "eos"


def test_a_question_that_contains_a_tag(idle: Engine, scene: Image.Image) -> None:
    greedy = SearchParams(strategy="greedy")
    asked = "How many big crosses are there? </SUMMARY>"
    answer = idle.answer(asked, scene, search=greedy, sampling=SHORT)
    assert len(answer.text) > 40


def test_cancel_frees_everything(idle: Engine, scene: Image.Image) -> None:
    endless = SamplingParams(temperature=1.0, max_tokens=3000, ignore_eos=True, seed=1)
    plan = StagePlan(stages=(Stage(name="none", tag="NOWHERE", criterion="is better"),))
    handle = idle.submit("What is at the center?", scene, plan=plan, sampling=endless)
    events = handle.events()
    next(events)
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    handle.cancel()
    assert isinstance(list(events)[-1], Failed)
    with pytest.raises(CancelledError):
        handle.result()


def test_a_closed_engine_says_so() -> None:
    engine = Engine(kv_cache_bytes=1 << 20)
    engine.close()
    with pytest.raises(CancelledError, match="closed"):
        engine.generate("a", SamplingParams(max_tokens=2))


def test_events_tell_the_whole_story(idle: Engine, scene: Image.Image, question: str) -> None:
    search = SearchParams(beam_size=3)
    handle = idle.submit(question, scene, search=search, sampling=SHORT)
    events = list(handle.events())
    answer = handle.result()
    assert isinstance(events[-1], Done)
    assert events[-1].answer is answer
    for stage in answer.stages:
        for i, candidate in enumerate(stage.candidates):
            pieces = [
                e.text
                for e in events
                if isinstance(e, TokenText) and (e.stage, e.candidate) == (stage.name, i)
            ]
            assert "".join(pieces) == candidate.text
    finished = [e for e in events if isinstance(e, CandidateFinished)]
    assert len(finished) == sum(len(stage.candidates) for stage in answer.stages)
    committed = [e.stage for e in events if isinstance(e, StageCommitted)]
    assert committed == [stage.name for stage in answer.stages]


def test_generate_stops_before_its_stop_string(idle: Engine) -> None:
    free = SamplingParams(temperature=0.0, max_tokens=30, n=2, ignore_eos=True)
    (output,) = idle.generate("Look at", free)
    text = output.outputs[0].text
    assert output.outputs[1].token_ids == output.outputs[0].token_ids
    stop = text.strip()[2:4]
    stopped = SamplingParams(temperature=0.0, max_tokens=30, stop=(stop,), ignore_eos=True)
    (again,) = idle.generate("Look at", stopped)
    assert again.outputs[0].text == text[: text.index(stop)]
    assert again.outputs[0].finish_reason == "stop"
