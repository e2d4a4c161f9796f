"""Small mistakes: for each stage, a text that is wrong in one way.

What comes after a mistake inside the same stage mostly follows from it, as in a model's own errors
(miswriting.py has those from which nothing follows). Every function returns a text that differs from
the right one.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from stagebeam.training.shapes.annotate import (
    Slip,
    StagedAnswer,
    caption_text,
    reasoning_text,
    summary_text,
)
from stagebeam.training.shapes.facts import Fact, draw_fact, fact_text
from stagebeam.training.shapes.miswriting import ATTRIBUTES, miswritten, other, other_question
from stagebeam.training.shapes.questions import RELATIONS, Question
from stagebeam.training.shapes.scene import Scene, Thing


def wrong_thing(rng: random.Random, thing: Thing) -> Thing:
    """The same object with one attribute changed."""
    name = rng.choice(tuple(ATTRIBUTES))
    value = other(rng, ATTRIBUTES[name], getattr(thing, name))
    changed: dict[str, Any] = {name: value}
    return replace(thing, **changed)


def wrong_scene(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one attribute or place changed, or one object dropped or added."""
    index = rng.randrange(len(scene))
    rest = [thing for i, thing in enumerate(scene) if i != index]
    free = [cell for cell in range(9) if all(cell != thing.cell for thing in scene)]
    kind = rng.choices(("attribute", "place", "drop", "add"), (0.5, 0.2, 0.2, 0.1))[0]
    if kind == "attribute":
        rest.append(wrong_thing(rng, scene[index]))
    elif kind == "place":
        rest.append(replace(scene[index], cell=rng.choice(free)))
    elif kind == "add":
        values = {name: rng.choice(choices) for name, choices in ATTRIBUTES.items()}
        rest += [scene[index], Thing(cell=rng.choice(free), **values)]
    return tuple(sorted(rest))


def wrong_summary(rng: random.Random, question: Question) -> str:
    right = summary_text(question)
    if rng.random() < 0.25:
        return miswritten(rng, right)
    while True:
        wrong = question
        if question.kind == "place":
            wrong = replace(question, cell=rng.randrange(9))
        elif question.operation and rng.random() < 0.3:
            operations = ("plus", "minus", "more", "above", "left of")
            kind = "relation" if question.kind == "relation" else "arithmetic"
            wrong = replace(question, kind=kind, operation=rng.choice(operations))
            if (wrong.operation in RELATIONS) != (kind == "relation"):
                continue
        else:
            wrong = other_question(rng, question)
        if summary_text(wrong) != right:
            return summary_text(wrong)


def wrong_caption(rng: random.Random, scene: Scene) -> str:
    if rng.random() < 0.25:
        return miswritten(rng, caption_text(scene))
    return caption_text(wrong_scene(rng, scene))


def wrong_reasoning(rng: random.Random, question: Question, scene: Scene) -> str:
    """A misread object, a wrong yes or no, a miscount, a wrong last step, a wrong "So", a walk for
    another filter, or the right text miswritten."""
    right = reasoning_text(question, scene)
    while True:
        draw = rng.random()
        if draw < 0.25:
            wrong = _reasoning_of_wrong_scene(rng, question, scene)
        elif draw < 0.45:
            wrong = miswritten(rng, right)
        elif draw < 0.58 and question.filters:
            asked = other_question(rng, question)
            if asked.kind == "relation" and not all(one.count(scene) for one in asked.filters):
                continue
            wrong = reasoning_text(asked, scene)
        elif draw < 0.66 and question.operation:
            fact = draw_fact(rng)
            if f" {question.operation} " not in fact[0]:
                continue
            wrong = f"{right.rsplit('. ', 2)[0]}. {fact_text(fact)}"
        elif draw < 0.9 and question.kind != "place":
            is_last = question.kind in ("compare", "arithmetic") and rng.random() < 0.2
            step = -1 if is_last else rng.randrange(len(scene))
            change = rng.choice((-1, 1)) if is_last or rng.random() < 0.4 else 0
            column = rng.randrange(max(1, len(question.filters)))
            slip = Slip(step, column, attribute=rng.randrange(2), change=change)
            wrong = reasoning_text(question, scene, slip)
        else:
            head, answer = right.rsplit(" So ", 1)
            wrong = f"{head} So {wrong_conclusion(rng, answer[:-1])}."
        if wrong != right:
            return wrong


def _reasoning_of_wrong_scene(rng: random.Random, question: Question, scene: Scene) -> str:
    if question.kind == "relation":
        index = rng.randrange(2)
        named = question.filters[index]
        free = [cell for cell in range(9) if all(cell != thing.cell for thing in scene)]
        moved = (
            replace(thing, cell=rng.choice(free)) if named.matches(thing) else thing
            for thing in scene
        )
        return reasoning_text(question, tuple(sorted(moved)))
    if question.kind == "place":
        here = [thing for thing in scene if thing.cell == question.cell]
        if here and rng.random() < 0.85:
            return reasoning_text(question, (wrong_thing(rng, here[0]),))
        return reasoning_text(
            question, () if here else (replace(rng.choice(scene), cell=question.cell),)
        )
    return reasoning_text(question, wrong_scene(rng, scene))


def wrong_conclusion(rng: random.Random, answer: str) -> str:
    """Another answer of the same sort."""
    if answer.isdigit():
        near = [n for n in range(max(0, int(answer) - 2), int(answer) + 3) if n != int(answer)]
        return str(rng.choice(near))
    if answer in ("yes", "no"):
        return "no" if answer == "yes" else "yes"
    values = {name: rng.choice(choices) for name, choices in ATTRIBUTES.items()}
    if answer == "nothing":
        return Thing(cell=0, **values).words
    if rng.random() < 0.15:
        return "nothing"
    size, color, shape = answer.split()
    return wrong_thing(rng, Thing(0, size, color, shape)).words


def wrong_fact(rng: random.Random, fact: Fact) -> Fact:
    """The same with another result."""
    return fact[0], wrong_conclusion(rng, fact[1])


def wrong_answer(
    rng: random.Random, question: Question, scene: Scene, right: StagedAnswer
) -> StagedAnswer:
    """A whole answer with one mistake; the stages after it follow from it."""
    stage = rng.choice(("summary", "caption", "reasoning", "reasoning", "conclusion"))
    if stage == "summary":
        return replace(right, summary=wrong_summary(rng, question))
    if stage == "conclusion":
        return replace(right, conclusion=wrong_conclusion(rng, right.conclusion))
    if stage == "caption":
        return replace(right, caption=wrong_caption(rng, scene))
    reasoning = wrong_reasoning(rng, question, scene)
    conclusion = reasoning.rpartition(" So ")[2].rstrip(".") or right.conclusion
    return replace(right, reasoning=reasoning, conclusion=conclusion)
