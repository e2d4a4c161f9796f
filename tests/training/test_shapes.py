"""The shapes data: deterministic, split by content, true by an independent count, one error a pair."""

import random
import re

import pytest

from stagebeam.training.easy_vqa import annotated_rows, read_questions
from stagebeam.training.shapes.annotate import annotate
from stagebeam.training.shapes.judge_pairs import TARGETS, make_gate, make_pair, stage_hints
from stagebeam.training.shapes.questions import KINDS, sample_question
from stagebeam.training.shapes.scene import (
    COLUMNS,
    ROWS,
    SPLITS,
    draw_scene,
    sample_scene,
    split_of,
)


def drawn(number, split="test", kind=None):
    rng = random.Random(number)
    scene = sample_scene(rng, split)
    return rng, scene, sample_question(rng, scene, kind)


def test_same_seed_same_picture_and_question():
    pictures = []
    for _ in range(2):
        rng, scene, question = drawn(3)
        pictures.append((scene, question, draw_scene(scene, rng).tobytes()))
    assert pictures[0] == pictures[1]
    assert draw_scene(scene, random.Random(4)).tobytes() != pictures[0][2]


def test_splits_share_no_scene():
    seen = {split: {sample_scene(random.Random(i), split) for i in range(400)} for split in SPLITS}
    for split, scenes in seen.items():
        assert {split_of(scene) for scene in scenes} == {split}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def answer_from_words(question, caption):
    """The answer from the question's and the caption's words alone, without the generator's code."""
    rows = [re.split(r" ", item) for item in caption.rstrip(".").split(", ")]
    things = [(row, column, size, color, shape) for row, column, size, color, shape in rows]

    def singular(word):
        return {"crosses": "cross", "objects": ""}.get(word, word.removesuffix("s"))

    def count(phrase):
        words = {singular(word) if word != "cross" else word for word in phrase.split()}
        words -= {"", "object"}
        return sum(words <= set(thing[2:]) for thing in things)

    text = question.rstrip("?")
    if found := re.fullmatch(r"What is at the (\w+) (\w+)", text):
        here = [thing for thing in things if thing[:2] == found.groups()]
        return " ".join(here[0][2:]) if here else "nothing"
    if found := re.fullmatch(r"How many (.+) (plus|minus) (.+) are there", text):
        first, second = count(found[1]), count(found[3])
        return str(first + second if found[2] == "plus" else first - second)
    if found := re.fullmatch(r"How many (.+) are there", text):
        return str(count(found[1]))
    if found := re.fullmatch(r"Are there (more|fewer) (.+) than (.+)", text):
        first, second = count(found[2]), count(found[3])
        return "yes" if (first > second if found[1] == "more" else first < second) else "no"
    if found := re.fullmatch(r"Is there a (.+)", text):
        return "yes" if count(found[1]) else "no"
    found = re.fullmatch(r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)", text)
    names, index = (COLUMNS, 1) if "of" in found[3] else (ROWS, 0)
    first, second = (
        names.index(next(t[index] for t in things if list(t[3:]) == list(pair)))
        for pair in ((found[1], found[2]), (found[4], found[5]))
    )
    ahead = first < second if found[3] in ("left of", "above") else first > second
    return "yes" if ahead else "no"


@pytest.mark.parametrize("kind", KINDS)
def test_annotations_are_true(kind):
    for number in range(300):
        _, scene, question = drawn(number, kind=kind)
        answer = annotate(question, scene)
        assert answer.conclusion == answer_from_words(question.text, answer.caption), question.text
        assert answer.reasoning.endswith(f"So {answer.conclusion}.")


@pytest.mark.parametrize("target", TARGETS)
def test_pairs_hold_one_right_text(target):
    orders = set()
    for number in range(200):
        rng, scene, question = drawn(number)
        answer = annotate(question, scene)
        pair = make_pair(rng, question, scene, answer, target)
        orders.add(pair.is_first)
        assert pair.right != pair.wrong
        if target in ("summary", "caption", "reasoning", "conclusion"):
            assert pair.right == getattr(answer, target)
            assert pair.hints == stage_hints(target, answer)
        else:
            assert pair.right in answer.text()
        assert pair.user_text().index(pair.texts[0]) <= pair.user_text().rindex(pair.texts[1])
        assert pair.reply_text() == f"I choose response {1 if pair.is_first else 2}."
    assert orders == {True, False}


def test_gates_tell_right_from_wrong():
    for number in range(200):
        rng, scene, question = drawn(number)
        answer = annotate(question, scene)
        gate = make_gate(rng, question, scene, answer)
        assert gate.is_correct == (gate.reasoning == answer.reasoning)


def test_easy_vqa_annotations_agree_with_its_answers():
    rows = read_questions("train")
    kept = list(annotated_rows(rows))
    assert len(kept) > 0.9 * len(rows)
    assert all(answer.reasoning.endswith(f"So {question.answer}.") for question, answer in kept)
    assert not {question.path for question in rows} & {q.path for q in read_questions("test")}
