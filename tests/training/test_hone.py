"""The fourth part of the bundled checkpoint's recipe: drawn and own mistakes, and its rounds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.outputs import Answer, Candidate, StageResult
from stagebeam.training.shapes import hone, own_mistakes, recipe
from stagebeam.training.shapes.annotate import annotate
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.mistakes import (
    wrong_answer,
    wrong_caption,
    wrong_reasoning,
    wrong_summary,
)
from stagebeam.training.shapes.miswriting import miswritten, other_question
from stagebeam.training.shapes.model import shapes_config
from stagebeam.training.shapes.own_mistakes import OwnMistakes, wrong_candidates
from stagebeam.training.shapes.questions import KINDS, sample_question
from stagebeam.training.shapes.recipe import CONFIG, train_shapes
from stagebeam.training.shapes.scene import sample_scene
from stagebeam.training.shapes.streams import TASKS

CHECKPOINT = Path(__file__).parents[2] / "assets" / "shapes"
MISTAKE = (
    '{"image": "1/own/0", "scene": [{"cell": 4, "size": "big", "color": "red", "shape": "cross"}],'
    ' "pair": {"target": "caption", "question": "What is at the top left?", "hints": [],'
    ' "right": "middle center big red cross.", "wrong": "middle center.", "is_first": true}}\n'
)
IDS = {"bos": 0, "eos": 5, "pad": 2, "image": 6}


def stage(name: str, *texts: str, winner: int = 0, cut_off: str = "") -> StageResult:
    candidates = tuple(
        Candidate(
            text=f" {text} </{name.upper()}>",
            inner=f" {text} ",
            token_ids=(1,),
            cumulative_logprob=0.0,
            finish_reason="length" if text == cut_off else "tag",
        )
        for text in texts
    )
    return StageResult(name=name, candidates=candidates, winner=winner)


def test_own_mistakes_are_the_wrong_candidates_up_to_the_first_wrong_winner() -> None:
    rng = random.Random(4)
    scene = sample_scene(rng, "train")
    question = sample_question(rng, scene)
    right = annotate(question, scene)
    answer = Answer(
        question=question.text,
        text="",
        conclusion="",
        stages=(
            stage("summary", right.summary, "Look.", "Look.", "cut", cut_off="cut"),
            stage("caption", "nothing.", right.caption, winner=1),
            stage("reasoning", right.reasoning, "So no.", winner=1),
            stage("conclusion", right.conclusion, "never reached"),
        ),
        finish_reason="tag",
        seed=0,
        strategy="stage_beam",
        beam_size=4,
    )
    pairs = list(wrong_candidates(answer, scene, question))
    assert [(pair.target, pair.wrong) for pair in pairs] == [
        ("summary", "Look."),
        ("caption", "nothing."),
        ("reasoning", "So no."),
    ]
    assert pairs[2].right == right.reasoning
    assert pairs[2].hints == (("caption", right.caption),)


def test_every_drawn_mistake_differs_from_the_right_text() -> None:
    rng = random.Random(1)
    ends = set()
    for index in range(1500):
        scene = sample_scene(rng, "train")
        question = sample_question(rng, scene, KINDS[index % len(KINDS)])
        right = annotate(question, scene)
        assert wrong_summary(rng, question) != right.summary
        assert wrong_caption(rng, scene) != right.caption
        reasoning = wrong_reasoning(rng, question, scene)
        assert reasoning != right.reasoning
        ends.add(" So " in reasoning)
        assert wrong_answer(rng, question, scene, right) != right
    assert ends == {True, False}  # whole ones, and some that stop before the end


def test_a_miswritten_text_is_built_of_the_text() -> None:
    rng = random.Random(2)
    text = "top left small red circle, top right big blue cross, middle left small red cross."
    found = {miswritten(rng, text) for _ in range(600)}
    assert text not in found
    assert "top left small red circle, middle left small red cross." in found
    assert "top left small red circle, top right big blue cross." in found
    assert any("red red" in wrong for wrong in found)
    assert any(wrong.endswith("small red") for wrong in found)
    assert miswritten(rng, "yes") == "no"  # all that one word leaves


def test_another_question_changes_one_filter() -> None:
    rng = random.Random(3)
    for index in range(300):
        scene = sample_scene(rng, "train")
        question = sample_question(rng, scene, KINDS[index % 5])  # all but "place"
        wrong = other_question(rng, question)
        changed = [a != b for a, b in zip(question.filters, wrong.filters, strict=True)]
        assert sum(changed) <= 1
        assert (wrong.kind, wrong.operation) == (question.kind, question.operation)


def test_the_recipe_names_tasks_that_exist() -> None:
    assert {*hone.HONE, *hone.COMPARE} - set(TASKS) == {"easy", "judge-own"}


def test_rounds_start_from_the_model_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def collect(model: Path, path: Path, *, seed: int, num_questions: int) -> int:
        seen.append((model, path.parent, seed))
        path.write_text(MISTAKE)
        return 1

    class StandIn:
        def __init__(self, model, output, config, phases, eval_fn):
            self.output, self.phases = output, phases

        def train(self):
            (self.output / "final").mkdir()
            (self.output / "final" / "tokenizer.json").write_bytes(
                (CHECKPOINT / "tokenizer.json").read_bytes()
            )
            seen.append(self.phases[0].name)
            return hone.Progress(is_finished=True)

    monkeypatch.setattr(own_mistakes, "collect_mistakes", collect)
    monkeypatch.setattr(hone, "Trainer", StandIn)
    assert hone.hone_shapes(CHECKPOINT, tmp_path, CONFIG).is_finished
    rounds = [tmp_path / f"round{number}" for number in (1, 2, 3)]
    assert seen == [
        (CHECKPOINT, rounds[0], 1),
        "hone",
        (rounds[0] / "final", rounds[1], 2),
        "compare",
        (rounds[1] / "final", rounds[2], 3),
        "weigh",
        (rounds[2] / "final", tmp_path, 4),
        "last words",
    ]


def test_an_export_says_which_part_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def part(name):
        def train(model, output, config):
            called.append((name, model, output))
            return recipe.Progress(is_finished=name != "deepen")

        return train

    monkeypatch.setattr(recipe, "hone_shapes", part("hone"))
    monkeypatch.setattr(recipe, "deepen_shapes", part("deepen"))
    assert train_shapes(tmp_path, model=CHECKPOINT).is_finished
    assert called.pop() == ("hone", CHECKPOINT, tmp_path)
    model = _write_model(tmp_path / "seven", 7)
    assert not train_shapes(tmp_path, model=model).is_finished
    assert called == [("deepen", model, tmp_path / "third")]
    with pytest.raises(InvalidInputError, match="with 7 text layers, or of the third, with 10"):
        train_shapes(tmp_path, model=_write_model(tmp_path / "six", 6))


def _write_model(folder: Path, num_layers: int) -> Path:
    config = shapes_config(600, IDS)
    config.text_config.num_hidden_layers = num_layers
    config.save_pretrained(folder)
    return folder


def test_own_mistakes_keep_their_image(tmp_path: Path) -> None:
    path = tmp_path / "mistakes.jsonl"
    path.write_text(MISTAKE)
    encoder = ChatEncoder(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))
    own = OwnMistakes(path, encoder)
    first, later = own[0][0].image, own[len(own) - 1][0].image
    assert first is not None
    assert later is not None
    assert first.pixel_values.equal(later.pixel_values)
