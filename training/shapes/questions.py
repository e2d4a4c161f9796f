"""Questions about a scene, with the truth: counting, comparing, existence, arithmetic, relations, places.

Owns the wording of a question and what it asks for; the staged answer is written in annotate.py.
A question never depends on how a scene is drawn, only on its objects.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from stagebeam.training.shapes.scene import COLORS, PLACES, SHAPES, SIZES, Scene, Thing

KINDS = ("count", "exist", "compare", "arithmetic", "relation", "place")
RELATIONS = ("left of", "right of", "above", "below")


def plural_of(noun: str) -> str:
    return "crosses" if noun == "cross" else f"{noun}s"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which objects are meant: any attribute may be left open (None)."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The attributes that are not left open."""
        return tuple(name for name in ("size", "color", "shape") if getattr(self, name) is not None)

    def matches(self, thing: Thing) -> bool:
        return (
            self.size in (None, thing.size)
            and self.color in (None, thing.color)
            and self.shape in (None, thing.shape)
        )

    def count(self, scene: Scene) -> int:
        return sum(map(self.matches, scene))

    def words(self, *, plural: bool = False) -> str:
        noun = self.shape or "object"
        if plural:
            noun = plural_of(noun)
        return " ".join(word for word in (self.size, self.color, noun) if word)


@dataclass(frozen=True, slots=True)
class Question:
    """kind: one of KINDS; operation: more/fewer, plus/minus or a relation, where the kind has one."""

    kind: str
    text: str
    filters: tuple[Filter, ...] = ()
    operation: str = ""
    cell: int = -1


def sample_question(rng: random.Random, scene: Scene, kind: str | None = None) -> Question:
    """A question of `kind` (any if None) about the scene, answers spread evenly where they can be."""
    kind = kind or rng.choice(KINDS)
    if kind == "place":
        cell = rng.choice(scene).cell if rng.random() < 0.75 else rng.randrange(9)
        return Question(kind, f"What is at the {PLACES[cell]}?", cell=cell)
    if kind == "count":
        one = sample_filter(rng, scene)
        return Question(kind, f"How many {one.words(plural=True)} are there?", (one,))
    if kind == "exist":
        one = sample_filter(rng, scene, present=rng.random() < 0.5)
        return Question(kind, f"Is there a {one.words()}?", (one,))
    if kind == "relation":
        named = [Filter(None, thing.color, thing.shape) for thing in scene]
        single = [one for one in named if named.count(one) == 1]
        if len(single) >= 2:
            first, second = rng.sample(single, 2)
            relation = rng.choice(RELATIONS)
            text = f"Is the {first.words()} {relation} the {second.words()}?"
            return Question(kind, text, (first, second), relation)
        kind = "compare"
    first, second = sample_two_filters(rng, scene)
    if kind == "compare":
        if rng.random() < 0.35 and first.count(scene) == second.count(scene):
            first, second = sample_two_filters(rng, scene)
        operation = rng.choice(("more", "fewer"))
        text = f"Are there {operation} {first.words(plural=True)} than {second.words(plural=True)}?"
        return Question(kind, text, (first, second), operation)
    if kind == "arithmetic":
        operation = rng.choice(("plus", "minus"))
        if operation == "minus" and first.count(scene) < second.count(scene):
            first, second = second, first
        text = f"How many {first.words(plural=True)} {operation} {second.words(plural=True)} are there?"
        return Question(kind, text, (first, second), operation)
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


def sample_two_filters(rng: random.Random, scene: Scene) -> tuple[Filter, Filter]:
    first = second = sample_filter(rng, scene)
    while second == first:
        second = sample_filter(rng, scene)
    return first, second


def sample_filter(rng: random.Random, scene: Scene, present: bool | None = None) -> Filter:
    """A filter naming one or two attributes; `present` asks for one that does or does not match."""
    while True:
        names = rng.choice(
            (("color",), ("shape",), ("color", "shape"), ("color", "shape"), ("size", "shape"))
        )
        thing = rng.choice(scene)
        values = {name: getattr(thing, name) for name in names}
        if rng.random() < (0.3 if present is None else 0.7 if not present else 0.0):
            name = rng.choice(names)
            choices = {"size": tuple(SIZES), "color": tuple(COLORS), "shape": SHAPES}[name]
            values[name] = rng.choice(choices)
        found = Filter(**values)
        if present is None or present == (found.count(scene) > 0):
            return found


def true_answer(question: Question, scene: Scene) -> str:
    """The conclusion that is right for the scene."""
    if question.kind == "place":
        here = [thing.words for thing in scene if thing.cell == question.cell]
        return here[0] if here else "nothing"
    if question.kind == "relation":
        first, second = (next(filter(one.matches, scene)) for one in question.filters)
        return "yes" if holds(question.operation, first, second) else "no"
    counts = [one.count(scene) for one in question.filters]
    if question.kind == "count":
        return str(counts[0])
    if question.kind == "exist":
        return "yes" if counts[0] else "no"
    if question.kind == "compare":
        is_true = counts[0] > counts[1] if question.operation == "more" else counts[0] < counts[1]
        return "yes" if is_true else "no"
    return str(counts[0] + counts[1] if question.operation == "plus" else counts[0] - counts[1])


def holds(relation: str, first: Thing, second: Thing) -> bool:
    if relation in ("left of", "right of"):
        ahead, behind = first.column, second.column
    else:
        ahead, behind = first.row, second.row
    return ahead < behind if relation in ("left of", "above") else ahead > behind
