"""Facts that reasoning ends with: sums of small counts, comparisons, relations of rows and columns.

Some 150 of them in all, in the reasoning's own words (annotate.py). Amid whole answers they are a
token in a hundred and were not learnt; here a row is nothing else and loss falls on their results.
"""

from __future__ import annotations

import random

from stagebeam.training.shapes.annotate import compare_text, relation_text, sum_text
from stagebeam.training.shapes.questions import RELATIONS
from stagebeam.training.shapes.scene import COLUMNS, MAX_THINGS, ROWS

Fact = tuple[str, str]  # what is asked, its result


def draw_fact(rng: random.Random) -> Fact:
    """A sum, a comparison or a relation, evenly."""
    kind = rng.choice(("sum", "compare", "relation"))
    if kind == "relation":
        operation = rng.choice(RELATIONS)
        line = ROWS if operation in ("above", "below") else COLUMNS
        first, second = rng.randrange(3), rng.randrange(3)
        is_before = operation in ("above", "left of")
        is_true = first < second if is_before else first > second
        return relation_text(operation, line[first], line[second]), "yes" if is_true else "no"
    first, second = rng.randint(0, MAX_THINGS), rng.randint(0, MAX_THINGS)
    if kind == "compare":
        operation = rng.choice(("more", "fewer"))
        is_true = first > second if operation == "more" else first < second
        return compare_text(operation, first, second), "yes" if is_true else "no"
    if rng.random() < 0.5:
        return sum_text("plus", first, second), str(first + second)
    first, second = max(first, second), min(first, second)
    return sum_text("minus", first, second), str(first - second)


def fact_text(fact: Fact) -> str:
    """The end of a reasoning that has come to this fact."""
    return f"{fact[0]} {fact[1]}. So {fact[1]}."
