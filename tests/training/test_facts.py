"""The facts that reasoning ends with, and pairs that stay together in both orders."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.facts import draw_fact, fact_text
from stagebeam.training.shapes.mistakes import wrong_fact
from stagebeam.training.shapes.scene import COLUMNS, ROWS
from stagebeam.training.shapes.streams import NUM_FACTS, VERDICT_WEIGHT, ShapesStream

CHECKPOINT = Path(__file__).parents[2] / "assets" / "shapes"


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))


def is_true(asked: str) -> str:
    """The result by another way: the fact's own words, evaluated."""
    line = {**dict.fromkeys(()), **{word: n for n, word in enumerate(ROWS)}}
    line |= {word: n for n, word in enumerate(COLUMNS)}
    if found := re.fullmatch(r"(\d) (plus|minus) (\d) is", asked):
        a, operation, b = found.groups()
        return str(int(a) + int(b) if operation == "plus" else int(a) - int(b))
    if found := re.fullmatch(r"(\d) (more|fewer) than (\d):", asked):
        a, operation, b = found.groups()
        return "yes" if (a > b) == (operation == "more") and a != b else "no"
    a, *operation, b = asked.removesuffix(":").split()
    is_before = operation[0] in ("above", "left")
    return "yes" if line[a] != line[b] and (line[a] < line[b]) == is_before else "no"


def test_facts_are_true_and_wrong_ones_are_not() -> None:
    rng = random.Random(0)
    asked = set()
    for _ in range(2000):
        fact = draw_fact(rng)
        asked.add(fact[0])
        assert fact[1] == is_true(fact[0])
        assert wrong_fact(rng, fact)[1] != fact[1]
        assert fact_text(fact) == f"{fact[0]} {fact[1]}. So {fact[1]}."
    assert len(asked) > 140


def test_loss_falls_on_results_alone(encoder: ChatEncoder) -> None:
    example = ShapesStream("facts", encoder, seed=1)[0]
    assert not isinstance(example, tuple)
    assert example.weights is not None
    weighed = example.input_ids[example.labelled & (example.weights > 0)]
    words = encoder.tokenizer.decode(weighed.tolist()).split()
    assert len(words) == 2 * NUM_FACTS
    assert words[::2] == words[1::2]  # the result, and after "So" again


@pytest.mark.parametrize("task", ["judge-fact", "judge-reasoning", "judge-short"])
def test_a_pair_comes_in_both_orders(encoder: ChatEncoder, task: str) -> None:
    made = ShapesStream(task, encoder, seed=1)[3]
    assert isinstance(made, tuple)
    texts = [encoder.tokenizer.decode(one.input_ids.tolist()) for one in made]
    assert [text[-2] for text in texts] == ["1", "2"]
    first, second = (re.split(r"Response \d: ", text.split("assistant")[0])[1:] for text in texts)
    assert [part.strip().removesuffix("user") for part in first] == [
        p.strip() for p in second[::-1]
    ]
    assert made[0].image is made[1].image
    for one in made:
        assert one.weights is not None
        assert one.early is not None
        assert torch.count_nonzero(one.weights[one.labelled] == VERDICT_WEIGHT) == 1
        assert one.early[-1] == 0
