"""Four-stage answers by rule: what each stage says about a scene and a question.

The reasoning enumerates: for each thing asked about it walks the caption's objects one by one, sets
each attribute beside the wanted one, says whether they match, and carries a running count, so that
every token follows from a few close ones. Text only; knows nothing of tokens or images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from stagebeam.training.shapes.questions import Question, holds, true_answer
from stagebeam.training.shapes.scene import COLUMNS, PLACES, ROWS, Scene, Thing


@dataclass(frozen=True, slots=True)
class Slip:
    """One wrong step of a reasoning, as a judge example needs it.

    step:      which object of the walk (-1: the comparison or sum after it)
    column:    which of the question's filters
    attribute: which of the filter's attributes, modulo their number
    change:    added to the count there; 0 turns that attribute's yes and no around instead
    """

    step: int
    column: int = 0
    attribute: int = 0
    change: int = 0


@dataclass(frozen=True, slots=True)
class StagedAnswer:
    """The inner text of each stage."""

    summary: str
    caption: str
    reasoning: str
    conclusion: str

    def text(self) -> str:
        """The whole answer with its tags, as the model writes it."""
        return "\n\n".join(
            f"<{field.name.upper()}> {getattr(self, field.name)} </{field.name.upper()}>"
            for field in fields(self)
        )


def annotate(question: Question, scene: Scene) -> StagedAnswer:
    """The right answer in four stages."""
    return StagedAnswer(
        summary=summary_text(question),
        caption=caption_text(scene),
        reasoning=reasoning_text(question, scene),
        conclusion=true_answer(question, scene),
    )


def summary_text(question: Question) -> str:
    if question.kind == "place":
        return f"Look at the {PLACES[question.cell]}."
    if question.kind == "exist":
        return f"Look for a {question.filters[0].words()}."
    if question.kind == "count":
        return f"Count the {question.filters[0].words(plural=True)}."
    if question.kind == "relation":
        first, second = (one.words() for one in question.filters)
        axis = "columns" if question.operation in ("left of", "right of") else "rows"
        return f"Find the {first} and the {second}, then compare the {axis}: {question.operation}."
    first, second = (one.words(plural=True) for one in question.filters)
    last = {"plus": "add", "minus": "subtract"}.get(question.operation, "compare")
    return f"Count the {first} and the {second}, then {last}: {question.operation}."


def caption_text(scene: Scene) -> str:
    return ", ".join(f"{thing.place} {thing.words}" for thing in scene) + "."


def reasoning_text(question: Question, scene: Scene, slip: Slip | None = None) -> str:
    """The reasoning; with a `slip`, everything after it follows from the wrong step."""
    if question.kind == "place":
        answer = true_answer(question, scene)
        return f"{PLACES[question.cell]} {answer}. So {answer}."
    if question.kind == "relation":
        return _relation_text(question, scene, slip)
    walk, counts = walk_text(question, scene, slip)
    if question.kind == "exist":
        return f"{walk}. So {'yes' if counts[0] else 'no'}."
    if question.kind == "count":
        return f"{walk}. So {counts[0]}."
    wrong_end = slip is not None and slip.step < 0
    operation = question.operation
    if question.kind == "compare":
        is_true = counts[0] > counts[1] if operation == "more" else counts[0] < counts[1]
        is_true ^= wrong_end
        answer = "yes" if is_true else "no"
        return f"{walk}. {compare_text(operation, *counts)} {answer}. So {answer}."
    total = counts[0] + counts[1] if operation == "plus" else counts[0] - counts[1]
    total = abs(total + (slip.change if slip and wrong_end else 0))
    return f"{walk}. {sum_text(operation, *counts)} {total}. So {total}."


def compare_text(operation: str, first: int, second: int) -> str:
    """What is asked about two counts; its yes or no follows, so that all it needs stands before it."""
    return f"{first} {operation} than {second}:"


def sum_text(operation: str, first: int, second: int) -> str:
    return f"{first} {operation} {second} is"


def relation_text(operation: str, first: str, second: str) -> str:
    return f"{first} {operation} {second}:"


def walk_text(question: Question, scene: Scene, slip: Slip | None = None) -> tuple[str, list[int]]:
    """For each filter, each object's attributes beside the wanted ones, with yes or no, and the count
    so far; and the final counts."""
    walks, counts = [], []
    for column, one in enumerate(question.filters):
        count = 0
        steps = []
        for number, thing in enumerate(scene):
            here = (
                slip if slip is not None and (slip.step, slip.column) == (number, column) else None
            )
            values = [(getattr(thing, name), getattr(one, name)) for name in one.named]
            matches = [value == wanted for value, wanted in values]
            if here is not None and not here.change:
                matches[here.attribute % len(matches)] ^= True
            count += all(matches)
            if here is not None and here.change:
                count = abs(count + here.change)
            said = (
                f"{value} {wanted} {'yes' if is_match else 'no'}"
                for (value, wanted), is_match in zip(values, matches, strict=True)
            )
            steps.append(f"{thing.place} {' '.join(said)} {count}")
        walks.append(f"{one.words()}: {', '.join(steps)}")
        counts.append(count)
    return ". ".join(walks), counts


def _relation_text(question: Question, scene: Scene, slip: Slip | None) -> str:
    """Walks to each of the two objects and stops there, so that its row or column is the last one
    named."""
    things = [next(filter(one.matches, scene)) for one in question.filters]
    is_vertical = question.operation in ("above", "below")
    ahead, behind = (ROWS[thing.row] if is_vertical else COLUMNS[thing.column] for thing in things)
    is_true = holds(question.operation, *things) ^ (slip is not None)
    answer = "yes" if is_true else "no"
    walks = [
        walk_text(replace(question, filters=(one,)), scene[: scene.index(thing) + 1])[0]
        for one, thing in zip(question.filters, things, strict=True)
    ]
    last = relation_text(question.operation, ahead, behind)
    return f"{walks[0]}: {ahead}. {walks[1]}: {behind}. {last} {answer}. So {answer}."


def nine_places_text(scene: Scene) -> str:
    """Every place in reading order with what is there: the dense form of "what is at"."""
    here: dict[int, Thing] = {thing.cell: thing for thing in scene}
    return ", ".join(
        f"{place} {here[cell].words if cell in here else 'nothing'}"
        for cell, place in enumerate(PLACES)
    )
