"""Training examples made in memory, one data set a task, every example a function of its index.

The same questions, annotations and pairs as on disk (dataset.py), but drawn and tokenised when asked.
An index also fixes the number of objects and the kind of question, so that lengths are known without
building anything and batches can be sorted by length.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from stagebeam.training.easy_vqa import (
    COLORS,
    SHAPES,
    annotated_rows,
    is_held_out,
    read_questions,
)
from stagebeam.training.examples import Example
from stagebeam.training.shapes.annotate import (
    StagedAnswer,
    annotate,
    caption_text,
    nine_places_text,
    walk_text,
)
from stagebeam.training.shapes.encoding import ChatEncoder, Weigh, image_inputs
from stagebeam.training.shapes.facts import draw_fact, fact_text
from stagebeam.training.shapes.judge_pairs import JudgePair, make_gate, make_pair, stage_hints
from stagebeam.training.shapes.marks import mark_pair
from stagebeam.training.shapes.mistakes import wrong_fact, wrong_thing
from stagebeam.training.shapes.proofread import RATES, exchange, mark_claims, wrong_facts
from stagebeam.training.shapes.questions import KINDS, Question, sample_filter, sample_question
from stagebeam.training.shapes.scene import (
    IMAGE_PIXELS,
    PLACES,
    Scene,
    draw_scene,
    sample_scene,
)

PLACE_PROMPT = "Name the {place}."
PLACES_PROMPT = "Name every place."
CAPTION_PROMPT = "Describe the image."
NUM_MATCHES = 5  # descriptions in an example of matching
NUM_SIZES = 4  # scenes hold 2 to 5 objects
FACTS_PROMPT = "Work these out."
NUM_FACTS = 6  # in a row
DECIDING_WEIGHT = 3.0
SEEN_WEIGHT = 6.0
VERDICT_WEIGHT, FORM_WEIGHT = 15.0, 0.05  # of the verdict's number, of the words around it
Examples = Example | tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One scene with a question, its right answer, and the generator that goes on from there."""

    scene: Scene
    question: Question
    answer: StagedAnswer
    rng: random.Random


class ShapesStream:
    """An endless-enough data set of one task, by seed and split."""

    def __init__(
        self,
        task: str,
        encoder: ChatEncoder,
        *,
        seed: int,
        split: str = "train",
        size: int = 1_000_000,
    ) -> None:
        self.task = task
        self.encoder = encoder
        self._build = TASKS[task]
        self._key = f"{seed}/{task}/{split}"
        self._split = split
        self._size = size
        self._lengths: dict[int, int] = {}

    def __len__(self) -> int:
        return self._size

    def length(self, index: int) -> int:
        """The length of another example with as many objects and the same kind of question."""
        group = index % (NUM_SIZES * len(KINDS))
        if group not in self._lengths:
            made = self[group]
            first = made if isinstance(made, Example) else made[0]
            self._lengths[group] = len(first.input_ids)
        return self._lengths[group]

    def draw(self, index: int) -> Drawn:
        """The scene and question behind example `index`."""
        rng = random.Random(f"{self._key}/{index}")
        scene = sample_scene(rng, self._split, 2 + index % NUM_SIZES)
        question = sample_question(rng, scene, KINDS[index // NUM_SIZES % len(KINDS)])
        return Drawn(scene, question, annotate(question, scene), rng)

    def __getitem__(self, index: int) -> Examples:
        return self._build(self.encoder, self.draw(index))


def _picture(one: Drawn) -> Image.Image:
    return draw_scene(one.scene, one.rng)


def _places(encoder: ChatEncoder, one: Drawn) -> Example:
    return encoder.example(PLACES_PROMPT, nine_places_text(one.scene), image_inputs(_picture(one)))


def _place(encoder: ChatEncoder, one: Drawn) -> Example:
    """One place, asked for shortly: how the text layers learn to look where they are told."""
    here = {thing.cell: thing.words for thing in one.scene}
    cell = (
        one.rng.choice(tuple(here)) if one.rng.random() < 0.75 else one.rng.randrange(len(PLACES))
    )
    prompt = PLACE_PROMPT.format(place=PLACES[cell])
    return encoder.example(prompt, here.get(cell, "nothing"), image_inputs(_picture(one)))


def _caption(encoder: ChatEncoder, one: Drawn) -> Example:
    return encoder.example(CAPTION_PROMPT, caption_text(one.scene), image_inputs(_picture(one)))


def _answer(encoder: ChatEncoder, one: Drawn) -> Example:
    return encoder.example(
        one.question.text,
        one.answer.text(),
        image_inputs(_picture(one)),
        weigh=weigh_deciding(encoder),
    )


def weigh_deciding(encoder: ChatEncoder) -> Weigh:
    """Numbers, yes and no weigh more: the few words that an answer hangs on."""
    deciding = deciding_ids(encoder)
    return lambda ids: [DECIDING_WEIGHT if token in deciding else 1.0 for token in ids]


def deciding_ids(encoder: ChatEncoder) -> frozenset[int]:
    operations = (" more", " fewer", " plus", " minus", " above", " below", " left", " right")
    words = (" yes", " no", *operations, *(f" {number}" for number in range(10)))
    return frozenset(encoder.ids(word)[0] for word in words)


def _text(encoder: ChatEncoder, one: Drawn) -> Example:
    """Reasoning from a given caption without an image: the text layers learn it on their own."""
    whole = one.answer.text()
    start = whole.index("<REASONING>")
    return encoder.example(
        one.question.text, whole[start:], given=whole[:start], weigh=weigh_deciding(encoder)
    )


def _facts(encoder: ChatEncoder, one: Drawn) -> Example:
    """Facts one after another; what is asked cannot be guessed, so only results bear loss."""
    facts = [draw_fact(one.rng) for _ in range(NUM_FACTS)]
    text = " ".join(map(fact_text, facts))
    deciding = deciding_ids(encoder)

    def weigh(ids: list[int]) -> list[float]:
        weights = []
        for before, token in zip(["", *ids], ids, strict=False):
            is_result = token in deciding and before in ends
            weights.append(1.0 if is_result else 0.0)
        return weights

    ends = {encoder.ids(word)[-1] for word in ("1:", "is a is", "So no So")}
    return encoder.example(FACTS_PROMPT, text, weigh=weigh)


def _fact_pair(encoder: ChatEncoder, one: Drawn) -> Examples:
    """A right and a wrong result of one fact, text only."""
    fact = draw_fact(one.rng)
    wrong = wrong_fact(one.rng, fact)
    pair = JudgePair("reasoning", "", (), fact_text(fact), fact_text(wrong), True)
    return pair_examples(encoder, pair, None)


def _match(encoder: ChatEncoder, one: Drawn) -> Example:
    """One object held against several descriptions, in the reasoning's own words."""
    thing = one.rng.choice(one.scene)
    filters = []
    for _ in range(NUM_MATCHES):
        seen = (
            thing if one.rng.random() < 0.6 else wrong_thing(one.rng, wrong_thing(one.rng, thing))
        )
        filters.append(sample_filter(one.rng, (seen,)))
    question = Question("count", "", tuple(filters))
    walk, _ = walk_text(question, (thing,))
    return encoder.example(f"Match {thing.place} {thing.words}.", f"{walk}.")


def _gate(encoder: ChatEncoder, one: Drawn) -> Example:
    gate = make_gate(one.rng, one.question, one.scene, one.answer)
    return encoder.example(gate.user_text(), gate.reply_text())


def pair_examples(
    encoder: ChatEncoder, pair: JudgePair, picture: Image.Image | None
) -> tuple[Example, ...]:
    """A pair in both orders, over one image: the verdict bears loss, and so do marks on the
    candidates' words."""
    image = image_inputs(picture) if picture is not None else None
    choices = {encoder.ids(f" {choice}")[0] for choice in (1, 2)}

    def weigh(ids: list[int]) -> list[float]:
        return [VERDICT_WEIGHT if token in choices else FORM_WEIGHT for token in ids]

    examples = []
    for turned in (pair.turned(True), pair.turned(False)):
        user = turned.user_text()
        marks = mark_pair(encoder, turned, user)
        examples.append(encoder.example(user, turned.reply_text(), image, marks=marks, weigh=weigh))
    return tuple(examples)


def _pair(target: str) -> Callable[[ChatEncoder, Drawn], Examples]:
    def build(encoder: ChatEncoder, one: Drawn) -> Examples:
        pair = make_pair(one.rng, one.question, one.scene, one.answer, target)
        return pair_examples(encoder, pair, _picture(one))

    return build


def _short_pair(encoder: ChatEncoder, one: Drawn) -> Examples:
    """One place, a right and a wrong word for it: the judge's first lesson."""
    thing = one.rng.choice(one.scene)
    right = f"{thing.place} {thing.words}."
    wrong = f"{thing.place} {wrong_thing(one.rng, thing).words}."
    question = f"What is at the {PLACES[thing.cell]}?"
    pair = JudgePair("caption", question, (), right, wrong, one.rng.random() < 0.5)
    return pair_examples(encoder, pair, _picture(one))


def _proofread(target: str) -> Callable[[ChatEncoder, Drawn], Examples]:
    """Two candidates with many wrong words each; only marks on their words bear loss."""

    def build(encoder: ChatEncoder, one: Drawn) -> Example:
        question, hints, image = one.question.text, stage_hints(target, one.answer), None
        if target == "fact":
            question, (first, second) = "", [wrong_facts(one.rng) for _ in range(2)]
        else:
            right, rate = getattr(one.answer, target), RATES[target]
            first, second = (exchange(one.rng, right, rate) for _ in range(2))
            image = image_inputs(_picture(one))
        criterion = "reasoning" if target == "fact" else target
        pair = JudgePair(criterion, question, hints, first[0], second[0], True)
        user = pair.user_text()
        marks = mark_claims(encoder, pair, user, (first[1], second[1]))
        return encoder.example(
            user, pair.reply_text(), image, marks=marks, weigh=lambda ids: [0.0] * len(ids)
        )

    return build


TASKS: dict[str, Callable[[ChatEncoder, Drawn], Examples]] = {
    "place": _place,
    "places": _places,
    "caption": _caption,
    "answer": _answer,
    "text": _text,
    "match": _match,
    "gate": _gate,
    "facts": _facts,
    "judge-fact": _fact_pair,
    "judge-short": _short_pair,
    **{
        f"judge-{target}": _pair(target)
        for target in ("summary", "caption", "reasoning", "conclusion", "answer", "sentence")
    },
    **{
        f"proof-{target}": _proofread(target)
        for target in ("fact", "summary", "caption", "reasoning")
    },
}


class EasyStream:
    """The annotated easy-VQA training rows, with small shifts and mirror images."""

    def __init__(self, encoder: ChatEncoder, *, seed: int, augment: bool = True) -> None:
        self._encoder = encoder
        rows = annotated_rows(read_questions("train"))
        self._rows = [row for row in rows if not is_held_out(row[0].image)]
        self._seed = seed
        self._augment = augment
        self._seen = {encoder.ids(f" {word}")[0] for word in (*SHAPES, *COLORS)}
        self._visits = 8 if augment else 1  # each row occurs under so many augmentations

    def __len__(self) -> int:
        return len(self._rows) * self._visits

    def length(self, index: int) -> int:
        return 60

    def __getitem__(self, index: int) -> Example:
        question, answer = self._rows[index % len(self._rows)]
        image = load_easy_image(question.path)
        if self._augment:
            image = shifted(image, random.Random(f"{self._seed}/easy/{index}"))
        return self._encoder.example(
            question.text, answer.text(), image_inputs(image), weigh=self._weigh
        )

    def _weigh(self, ids: list[int]) -> list[float]:
        """What is seen weighs more than the words around it, which are soon learnt."""
        return [SEEN_WEIGHT if token in self._seen else 1.0 for token in ids]


@cache
def load_easy_image(path: Path) -> Image.Image:
    """An easy-VQA image at the size the checkpoint's processor gives it."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    return image.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BILINEAR)


def shifted(image: Image.Image, rng: random.Random) -> Image.Image:
    """The image mirrored half the time and moved by up to 6 pixels, edges repeated."""
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    reach = 6
    pixels = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    top, left = rng.randint(0, 2 * reach), rng.randint(0, 2 * reach)
    return Image.fromarray(pixels[top : top + image.height, left : left + image.width])
