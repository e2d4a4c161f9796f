"""The bundled checkpoint's recipe: the lessons before and beside the staged answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import MllamaForConditionalGeneration

from stagebeam.training.easy_vqa import COLORS as EASY_COLORS
from stagebeam.training.easy_vqa import SHAPES as EASY_SHAPES
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.check import ShapesCheck
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.model import initialise_, shapes_config
from stagebeam.training.shapes.own_mistakes import OwnMistakes, collect_mistakes
from stagebeam.training.shapes.recipe import phases
from stagebeam.training.shapes.scene import sample_scene
from stagebeam.training.shapes.sight import (
    LONE_COLORS,
    LoneShapes,
    cell_labels,
    cell_of_patches,
    draw_lone_shape,
    train_sight_,
)
from stagebeam.training.shapes.streams import ShapesStream

CHECKPOINT = Path(__file__).parents[2] / "assets" / "shapes"
IDS = {"bos": 0, "eos": 5, "pad": 2, "image": 6}


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mistakes.jsonl"
    assert collect_mistakes(CHECKPOINT, path, seed=1, num_questions=6) > 0
    return path


def test_patches_lie_in_the_cell_that_they_cover() -> None:
    assert cell_of_patches(3).tolist() == list(range(9))
    grid = cell_of_patches(6).reshape(6, 6)
    assert grid[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert grid[:, 0].tolist() == [0, 0, 3, 3, 6, 6]


def test_cell_labels_name_every_object_and_no_empty_cell() -> None:
    scene = sample_scene(random.Random(0), "train", 3)
    labels = cell_labels(scene)
    assert sorted(labels[:, 0].nonzero().flatten().tolist()) == [thing.cell for thing in scene]


def test_lone_shapes_look_as_they_are_labelled() -> None:
    rng = random.Random(2)
    for _ in range(40):
        image, (shape, color) = draw_lone_shape(rng)
        assert shape < len(EASY_SHAPES)
        wanted = LONE_COLORS[EASY_COLORS[color]]
        near = [
            pixel
            for _, pixel in image.getcolors(maxcolors=1 << 16) or []
            if max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) < 24
        ]
        assert near
    image, (shape, color) = LoneShapes().draw(rng)
    assert image.size == (72, 72)
    assert color < len(EASY_COLORS)


def test_the_first_lesson_teaches_the_tower_alone_and_the_same_each_time() -> None:
    def taught() -> tuple[MllamaForConditionalGeneration, dict[str, torch.Tensor]]:
        model = MllamaForConditionalGeneration(shapes_config(600, IDS))
        initialise_(model, 3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_sight_(model, seed=3, steps=2)
        return model, before

    (model, before), (again, _) = taught(), taught()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        if "vision_model" not in name:
            assert torch.equal(value, before[name]), name
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert len(changed) > 10


def test_own_mistakes_make_judge_examples(mistakes: Path, encoder: ChatEncoder) -> None:
    rows = [json.loads(line) for line in mistakes.read_text().splitlines()]
    assert all(row["pair"]["right"] != row["pair"]["wrong"] for row in rows)
    assert not list(mistakes.parent.glob("*.part"))
    own = OwnMistakes(mistakes, encoder)
    assert len(own) % len(rows) == 0
    both, again = own[3], own[3]
    texts = [encoder.tokenizer.decode(example.input_ids.tolist()) for example in both]
    assert [example.input_ids.tolist() for example in again] == [
        example.input_ids.tolist() for example in both
    ]
    assert all(rows[3 % len(rows)]["pair"]["wrong"].strip() in text for text in texts)
    assert [text[-2] for text in texts] == ["1", "2"]  # both orders stay together


def test_the_last_phase_waits_for_the_models_own_mistakes(
    mistakes: Path, encoder: ChatEncoder
) -> None:
    before, after = phases(encoder), phases(encoder, mistakes)
    assert [phase.name for phase in after] == [*(phase.name for phase in before), "settle"]
    assert "judge-own" in [source.name for source in after[-1].sources]
    state = Progress(phase=len(before), is_finished=True).to_state(before, 1)
    assert Progress.from_state(state, before, 1).is_finished
    assert not Progress.from_state(state, after, 1).is_finished


def test_matching_is_practised_in_the_words_of_the_reasoning(encoder: ChatEncoder) -> None:
    stream = ShapesStream("match", encoder, seed=1)
    texts = [encoder.tokenizer.decode(stream[i].input_ids.tolist()) for i in range(40)]
    assert any(" yes" in text for text in texts)
    assert any(" no" in text for text in texts)
    for text in texts:
        shown, walk = text.split("assistant\n\n")
        words = shown.split("Match ")[1].split(".")[0].split()
        for step in walk.strip().removesuffix(".").split(". "):
            wanted, said = step.split(": ")
            steps = said.split()[2:-1]  # between the place and the count
            for value, asked, verdict in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
                assert value in words
                assert asked in wanted.split()
                assert (verdict == "yes") == (value == asked)


def test_the_check_counts_stages_that_are_exactly_right() -> None:
    numbers = ShapesCheck(1, num_questions=6)(0, CHECKPOINT)
    assert set(numbers) == {"well_formed", "caption", "reasoning", "conclusion"}
    assert all(0 <= value <= 1 for value in numbers.values())
    assert numbers["well_formed"] > 0.5
