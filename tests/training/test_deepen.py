"""The third part of the bundled checkpoint's recipe: marks in judge examples, and the deeper model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import MllamaForConditionalGeneration

from stagebeam.training.shapes import deepen
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.judge_pairs import JudgePair
from stagebeam.training.shapes.marks import (
    DECIDING_WEIGHT,
    MARK_LAYERS,
    WORD_LAYERS,
    WRONG_WEIGHT,
    mark_pair,
)
from stagebeam.training.shapes.model import initialise_, shapes_config, write_like
from stagebeam.training.shapes.streams import TASKS

IDS = {"bos": 0, "eos": 5, "pad": 2, "image": 6}
CHECKPOINT = Path(__file__).parents[2] / "assets" / "shapes"


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_difference_is_marked_in_both_candidates(
    encoder: ChatEncoder, is_first: bool
) -> None:
    right, wrong = "top left small red circle.", "top left small blue circle."
    pair = JudgePair("caption", "What is there?", (), right, wrong, is_first)
    user = pair.user_text()
    ids = encoder.ids(user)
    words = [encoder.tokenizer.decode([token]) for token in ids]
    marks = mark_pair(encoder, pair, user)
    assert len({mark.position for mark in marks}) == len(marks)
    deciding = [mark for mark in marks if mark.weight in (DECIDING_WEIGHT, WRONG_WEIGHT)]
    said = [
        (words[m.position].strip(), encoder.tokenizer.decode([m.token]).strip(), m.early)
        for m in deciding
    ]
    good = [("small", "red", WORD_LAYERS), ("red", "correct", MARK_LAYERS)]
    bad = [("small", "red", WORD_LAYERS), ("blue", "incorrect", MARK_LAYERS)]
    assert said == (good + bad if is_first else bad + good)
    for mark in marks:
        token = encoder.tokenizer.decode([mark.token]).strip()
        if mark not in deciding and mark.early == MARK_LAYERS:
            assert token == "correct"
        elif mark not in deciding:
            assert token in right


def test_what_follows_a_mistake_is_not_marked(encoder: ChatEncoder) -> None:
    """Texts of other lengths never run in step again."""
    pair = JudgePair(
        "caption", "", (), "top left small red circle.", "bottom left, no big red.", True
    )
    user = pair.user_text()
    second = user.index("Response 2")
    offsets = encoder.tokenizer.encode(user, add_special_tokens=False).offsets
    after = [m for m in mark_pair(encoder, pair, user) if offsets[m.position][0] > second]
    assert [mark.weight for mark in after] == [DECIDING_WEIGHT, WRONG_WEIGHT]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_text_that_ends_early_is_marked_after_its_end(
    encoder: ChatEncoder, is_first: bool
) -> None:
    right, wrong = "top left red circle, top right", "top left red circle,"
    user = JudgePair("caption", "", (), right, wrong, is_first).user_text()
    words = [encoder.tokenizer.decode([token]) for token in (*encoder.ids(user), 0)]
    marks = mark_pair(encoder, JudgePair("caption", "", (), right, wrong, is_first), user)
    wrong_ones = [
        mark for mark in marks if encoder.tokenizer.decode([mark.token]).strip() == "incorrect"
    ]
    assert len(wrong_ones) == 1
    after = wrong_ones[0].position
    assert words[after - 1] == ","
    assert after == len(words) - 1 if is_first else words[after].strip() == ""
    asked = next(mark for mark in marks if mark.position == after - 1)
    assert (encoder.tokenizer.decode([asked.token]), asked.early) == (" top", WORD_LAYERS)


def test_new_layers_change_no_answer(tmp_path: Path) -> None:
    model = MllamaForConditionalGeneration(shapes_config(600, IDS))
    initialise_(model, 1)
    (tmp_path / "old").mkdir()
    model.config.save_pretrained(tmp_path / "old")
    write_like(tmp_path / "old", model, tmp_path / "export")
    deepen.write_deepened_start(tmp_path / "export", tmp_path / "deeper")
    deeper = MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "deeper", dtype=torch.float32
    )
    model = MllamaForConditionalGeneration.from_pretrained(tmp_path / "export", dtype=torch.float32)
    added = len(deeper.model.language_model.layers) - len(model.model.language_model.layers)
    assert added == deepen.NEW_LAYERS
    ids = torch.randint(7, 600, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, deeper(input_ids=ids).logits)


def test_the_recipe_names_tasks_that_exist() -> None:
    named = {*deepen.REWORD, *deepen.JUDGE}
    assert named - set(TASKS) == {"easy", "judge-own"}
