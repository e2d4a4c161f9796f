"""The judge alone: held-out single-error pairs, both orders, by the engine's own verdicts.

An error's kind is read off the texts: what the first word that differs is about.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from stagebeam.benchmarks.accuracy.questions import CYCLE, draw_questions
from stagebeam.benchmarks.accuracy.significance import wilson_interval
from stagebeam.engine.engine import Engine
from stagebeam.engine.judge.verdict import combine_orders
from stagebeam.engine.params import JudgeParams
from stagebeam.training.shapes.annotate import annotate
from stagebeam.training.shapes.judge_pairs import TARGETS, JudgePair, criterion_of, make_pair
from stagebeam.training.shapes.scene import COLORS, COLUMNS, ROWS, SHAPES, SIZES

_NUM_THREADS = 32  # callers that wait; the engine batches what they ask
_ONE_ORDER = JudgeParams(both_orders=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """One pair's verdicts: log-odds that the text shown first is better, in either order."""

    target: str
    error: str
    right_first: float
    wrong_first: float

    @property
    def is_right(self) -> bool:
        """The verdict on both orders' mean, as a search takes it; a tie is no verdict."""
        return combine_orders(self.right_first, self.wrong_first)[0] > 0

    @property
    def is_consistent(self) -> bool:
        return not combine_orders(self.right_first, self.wrong_first)[1]


def judge_pairs(engine: Engine, split: str, seed: int, count: int) -> list[JudgedPair]:
    """Judge `count` single-error pairs of the split, all stages and searches in turn."""
    drawn = list(draw_questions(split, seed, count, purpose="judge"))
    pairs = [
        make_pair(
            one.rng,
            one.question,
            one.scene,
            annotate(one.question, one.scene),
            TARGETS[(index + index // CYCLE) % len(TARGETS)],  # each meets every kind and size
        )
        for index, one in enumerate(drawn)
    ]

    def judge(index: int) -> JudgedPair:
        pair = pairs[index]
        orders = [(pair.right, pair.wrong), (pair.wrong, pair.right)]
        criterion = criterion_of(engine.plan, pair.target)
        image = drawn[index].image
        right_first, wrong_first = engine.judge(
            pair.question, image, orders, criterion, pair.hints, judge=_ONE_ORDER
        )
        return JudgedPair(
            target=pair.target,
            error=error_kind(pair),
            right_first=right_first.log_odds,
            wrong_first=wrong_first.log_odds,
        )

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        judged = threads.map(judge, range(count))
        is_hidden = not sys.stderr.isatty()
        return list(tqdm(judged, total=count, desc="judging", unit="pair", disable=is_hidden))


def judge_report(judged: Sequence[JudgedPair]) -> dict[str, Any]:
    """Shares over all pairs, by stage and by kind of error."""
    report = _shares(judged)
    for name in ("target", "error"):
        values = sorted({getattr(pair, name) for pair in judged})
        report[f"by_{name}"] = {
            value: _shares([pair for pair in judged if getattr(pair, name) == value])
            for value in values
        }
    return report


def error_kind(pair: JudgePair) -> str:
    """What the first difference is about."""
    right, wrong = re.findall(r"\w+", pair.right), re.findall(r"\w+", pair.wrong)
    both = zip(right, wrong, strict=False)
    differing = next(((a, b) for a, b in both if a != b), None)
    if differing is None:
        return "length"
    if "nothing" in differing:
        return "object"
    for name, words in _WORDS.items():
        if all(word in words for word in differing):
            return "object" if name == "place" and len(right) != len(wrong) else name
    return "number" if all(word.isdigit() for word in differing) else "wording"


_WORDS: dict[str, Sequence[str]] = {
    "color": tuple(COLORS),
    "shape": tuple(name + ending for name in SHAPES for ending in ("", "s", "es")),
    "size": tuple(SIZES),
    "place": (*ROWS, *COLUMNS),
    "yes/no": ("yes", "no"),
}


def _shares(judged: Sequence[JudgedPair]) -> dict[str, Any]:
    count = len(judged)
    num_right = sum(pair.is_right for pair in judged)
    num_single = sum((pair.right_first > 0) + (pair.wrong_first < 0) for pair in judged)
    return {
        "num_pairs": count,
        "accuracy": num_right / count,
        "interval": list(wilson_interval(num_right, count)),
        "single_order_accuracy": num_single / (2 * count),
        "order_consistency": sum(pair.is_consistent for pair in judged) / count,
        "first_chosen": sum((p.right_first > 0) + (p.wrong_first > 0) for p in judged)
        / (2 * count),
    }
