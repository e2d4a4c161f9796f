"""easy-VQA with four-stage annotations, by rule from the set's own questions and answers.

An image's colour and shape are gathered from all its answered questions; a question whose reasoning
needs what no answer tells is left out of the training rows. The official test set is never
annotated: it gives questions and answers only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stagebeam.training.shapes.annotate import StagedAnswer

COLORS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SHAPES = ("circle", "triangle", "rectangle")
HELD_OUT_EVERY = 10  # one training image in so many is kept for checking and never trained on


def is_held_out(image: int) -> bool:
    """Whether a training image is kept for checking while a model trains."""
    return image % HELD_OUT_EVERY == 0


@dataclass(frozen=True, slots=True)
class EasyQuestion:
    """One question of the set; `path` is its image."""

    number: int
    image: int
    path: Path
    text: str
    answer: str

    @property
    def words(self) -> list[str]:
        return re.findall(r"[a-z]+", self.text.lower())

    @property
    def asked(self) -> str:
        """The colour or shape that the question names, "" if it names none."""
        return next((word for word in self.words if word in COLORS + SHAPES), "")

    @property
    def is_negated(self) -> bool:
        return "not" in self.words or "no" in self.words

    @property
    def answer_type(self) -> str:
        """yes/no, color or shape."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "color" if self.answer in COLORS else "shape"


@dataclass(frozen=True, slots=True)
class Fact:
    """What the answered questions tell about an image; "" where they do not."""

    color: str = ""
    shape: str = ""


def read_questions(split: str) -> list[EasyQuestion]:
    """All questions of "train" or "test", from the installed easy-vqa package."""
    try:
        import easy_vqa
    except ImportError as error:
        raise ValueError("easy-VQA is not installed; run: pip install easy-vqa") from error
    if split == "train":
        texts, answers, images = easy_vqa.get_train_questions()
        paths = easy_vqa.get_train_image_paths()
    elif split == "test":
        texts, answers, images = easy_vqa.get_test_questions()
        paths = easy_vqa.get_test_image_paths()
    else:
        raise ValueError(f"split must be train or test, got {split!r}")
    return [
        EasyQuestion(number, int(image), Path(paths[int(image)]), text, answer)
        for number, (text, answer, image) in enumerate(zip(texts, answers, images, strict=True))
    ]


def gather_facts(questions: list[EasyQuestion]) -> dict[int, Fact]:
    """Each image's colour and shape, as far as its questions and answers tell."""
    known: dict[int, dict[str, str]] = {}
    for question in questions:
        told = {question.answer} if question.answer_type != "yes/no" else set()
        is_stated = question.answer_type != "yes/no" or (
            (question.answer == "yes") != question.is_negated
        )
        if is_stated and question.asked:
            told.add(question.asked)
        facts = known.setdefault(question.image, {})
        for word in told:
            facts["color" if word in COLORS else "shape"] = word
    return {image: Fact(**facts) for image, facts in known.items()}


def annotate_easy(question: EasyQuestion, fact: Fact) -> StagedAnswer | None:
    """The four stages, or None where the facts do not carry the reasoning."""
    if not (fact.color and fact.shape):
        return None
    if question.answer_type == "yes/no":
        name = "color" if question.asked in COLORS else "shape"
        is_same = question.asked == getattr(fact, name)
        verb = "is" if is_same else "is not"
        steps = f"The {name} is {getattr(fact, name)}. It {verb} {question.asked}."
        if question.is_negated:
            steps += " The question asks for not."
        answer = "yes" if is_same != question.is_negated else "no"
    else:
        name = question.answer_type
        steps = f"The {name} is {getattr(fact, name)}."
        answer = getattr(fact, name)
    return StagedAnswer(
        summary=f"Look at the {name}.",
        caption=f"One {fact.color} {fact.shape}.",
        reasoning=f"{steps} So {answer}.",
        conclusion=answer,
    )


def annotated_rows(
    questions: list[EasyQuestion],
) -> Iterator[tuple[EasyQuestion, StagedAnswer]]:
    """The questions whose annotation agrees with their own answer."""
    facts = gather_facts(questions)
    for question in questions:
        answer = annotate_easy(question, facts[question.image])
        if answer is not None and answer.conclusion == question.answer:
            yield question, answer
