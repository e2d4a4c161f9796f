"""Held-out questions with their answers: drawn shapes, easy-VQA's official test, or a folder's rows.

A question's number fixes it for a seed, whatever the number of questions asked for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.stages import StagePlan
from stagebeam.training.data import open_conversations
from stagebeam.training.easy_vqa import read_questions
from stagebeam.training.shapes.questions import (
    KINDS,
    Question,
    sample_question,
    true_answer,
)
from stagebeam.training.shapes.scene import Scene, draw_scene, sample_scene

SHAPES, EASY_VQA = "shapes", "easy-vqa"
NUM_SIZES = 4  # scenes hold 2 to 5 objects
CYCLE = NUM_SIZES * len(
    KINDS
)  # drawn questions repeat their kind and number of objects after so many


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One question; `kind` groups the results, "" where the data has no kinds."""

    index: int
    text: str
    image: Path | Image.Image | None
    answer: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class DrawnScene:
    """A shapes question with all that is known about it; `rng` goes on from there."""

    scene: Scene
    question: Question
    image: Image.Image
    rng: random.Random


def read_held_out(
    data: str, split: str, seed: int, num_questions: int | None, model: Path, plan: StagePlan
) -> list[HeldOut]:
    """The questions of `data`: shapes, easy-vqa, or a folder in the LLaVA-CoT-100k layout."""
    if num_questions is not None and num_questions < 1:
        raise InvalidInputError(f"--num-questions must be >= 1, got {num_questions}")
    if data == SHAPES:
        drawn = draw_questions(split, seed, 1000 if num_questions is None else num_questions)
        return [
            HeldOut(
                index,
                one.question.text,
                one.image,
                true_answer(one.question, one.scene),
                one.question.kind,
            )
            for index, one in enumerate(drawn)
        ]
    if split != "test":
        raise InvalidInputError(f"only shapes has a {split} split; leave --split out for {data}")
    questions = _easy_vqa() if data == EASY_VQA else _folder(data, model, plan)
    if num_questions is None or num_questions >= len(questions):
        return questions
    random.Random(seed).shuffle(questions)  # a longer run begins with a shorter one's questions
    return questions[:num_questions]


def draw_questions(split: str, seed: int, count: int, purpose: str = "ask") -> Iterator[DrawnScene]:
    """Fresh shapes questions of a split, all kinds and numbers of objects in turn."""
    for index in range(count):
        rng = random.Random(f"{seed}/{purpose}/{split}/{index}")
        scene = sample_scene(rng, split, 2 + index % NUM_SIZES)
        question = sample_question(rng, scene, KINDS[index // NUM_SIZES % len(KINDS)])
        yield DrawnScene(scene, question, draw_scene(scene, rng), rng)


def _easy_vqa() -> list[HeldOut]:
    return [
        HeldOut(
            question.number, question.text, question.path, question.answer, question.answer_type
        )
        for question in read_questions("test")
    ]


def _folder(data: str | os.PathLike[str], model: Path, plan: StagePlan) -> list[HeldOut]:
    """Each row's first question; its annotation's conclusion, or whole reply where it has none."""
    dataset, _ = open_conversations(data, model)
    found = []
    for index in range(len(dataset)):
        row = dataset.row(index)
        text, reply = (
            next(text for role, text in row.turns if role == wanted)
            for wanted in ("user", "assistant")
        )
        found.append(HeldOut(index, text, row.image, plan.conclusion(reply) or reply))
    return found
