"""Texts written wrongly: something left out, doubled, exchanged or cut off, or meant for another question.

What a sampled candidate gets wrong beside the facts: nothing after such a mistake follows from it.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from stagebeam.training.shapes.questions import Question, plural_of
from stagebeam.training.shapes.scene import COLORS, COLUMNS, ROWS, SHAPES, SIZES

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "color": tuple(COLORS),
    "shape": SHAPES,
}
OPERATIONS = (("plus", "minus"), ("more", "fewer"), ("above", "below"))
KINDS_OF_WORDS = (
    *ATTRIBUTES.values(),
    tuple(plural_of(noun) for noun in (*SHAPES, "object")),
    ROWS,
    COLUMNS,
    *OPERATIONS,
    ("yes", "no"),
)
DIGITS = tuple("012345")
OTHERS = {
    word: tuple(other for other in kind if other != word)
    for kind in (*KINDS_OF_WORDS, DIGITS)
    for word in kind
}
WAYS = ("drop", "double", "cut", "cut", "exchange", "drop word", "double word")


def other(rng: random.Random, choices: tuple[str, ...], value: str) -> str:
    return rng.choice([choice for choice in choices if choice != value])


def miswritten(rng: random.Random, text: str) -> str:
    """The text with one clause or word left out, doubled or exchanged, or its end cut off; it differs."""
    while True:
        wrong = _miswritten(rng, text, rng.choice(WAYS))
        if wrong not in ("", text):
            return wrong


def _miswritten(rng: random.Random, text: str, way: str) -> str:
    words = text.split(" ")
    clauses = re.split(r"(?<=[,.:]) ", text)
    if way in ("drop", "double", "cut") and len(clauses) > 1:
        at = rng.randrange(len(clauses))
        if way == "cut":
            kept = (
                clauses[: max(1, at)] if rng.random() < 0.7 else words[: rng.randrange(len(words))]
            )
            end = "." if rng.random() < 0.8 else ""
            return f"{' '.join(kept).rstrip(',.:')}{end}"
        said = clauses[:at] + clauses[at : at + 1] * (2 * (way == "double")) + clauses[at + 1 :]
        return f"{' '.join(said).rstrip(',:.')}."
    at = rng.randrange(len(words))
    if way == "exchange":
        known = [i for i, word in enumerate(words) if word.rstrip(",.:") in OTHERS]
        if not known:
            return text
        at = rng.choice(known)
        word = words[at].rstrip(",.:")
        words[at] = rng.choice(OTHERS[word]) + words[at][len(word) :]
    elif way == "double word":
        words.insert(at, words[at].rstrip(",.:"))
    else:
        del words[at]
    return " ".join(words)


def other_question(rng: random.Random, question: Question) -> Question:
    """The question with one filter written down wrongly: a word exchanged, left out, put in, or taken
    from the other filter."""
    index = rng.randrange(len(question.filters))
    filters = list(question.filters)
    one = filters[index]
    others = [filter for filter in filters if filter != one]
    draw = rng.random()
    name = rng.choice(one.named)
    if others and draw < 0.4:
        there = others[0]
        shared = [n for n in there.named if getattr(there, n) != getattr(one, n)]
        name = rng.choice(shared or there.named)
        changed = there if draw < 0.1 else replace(one, **{name: getattr(there, name)})
    elif draw < 0.55 and len(one.named) > 1:
        changed = replace(one, **{name: None})
    elif draw < 0.7 and len(one.named) < 3:
        name = rng.choice([n for n in ATTRIBUTES if n not in one.named])
        changed = replace(one, **{name: rng.choice(ATTRIBUTES[name])})
    else:
        changed = replace(one, **{name: other(rng, ATTRIBUTES[name], getattr(one, name))})
    filters[index] = changed
    return replace(question, filters=tuple(filters))
