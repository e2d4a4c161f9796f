"""What the bundled checkpoint is held to, checked on evaluations' documents.

A bar says what was wanted, what was measured and whether it holds; one that the documents do not
measure has no verdict. The numbers come from the documents alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stagebeam.benchmarks.accuracy.questions import EASY_VQA, SHAPES
from stagebeam.benchmarks.accuracy.table import p_value, percent

FORMAT_VALID = 0.995
GREEDY, EASY_GREEDY = 0.90, 0.98
JUDGE = 0.90
RISING = (1, 2, 4, 8)
ERRORS_REMOVED, MAX_P = 1 / 3, 0.01
RIVALS = ("best_of_n:10", "sentence_beam:2")  # of stage_beam:4, as in the paper's Table 5


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise; `holds` is None where nothing was measured."""

    name: str
    wanted: str
    measured: str = "not measured"
    holds: bool | None = None


def check_bars(documents: Sequence[dict[str, Any]]) -> list[Bar]:
    """All bars over finished documents of `stagebeam evaluate`, one of each data set and weight of
    votes at most. Where votes count, the searches that were run alone are held to anything."""
    by_data = {document["data"]: document for document in documents if not vote_weight(document)}
    shapes, easy = by_data.get(SHAPES), by_data.get(EASY_VQA)
    greedy = _row(shapes, "greedy", None)
    bars = [
        _share(
            "format valid, greedy",
            FORMAT_VALID,
            None if greedy is None else greedy["format_valid"],
        ),
        _accuracy("right, greedy", GREEDY, greedy),
        *_judge_bars(shapes),
    ]
    for document in documents:
        temperatures = [
            row["temperature"] for row in document["rows"] if document["data"] == SHAPES
        ]
        for temperature in dict.fromkeys(t for t in temperatures if t is not None):
            found = _search_bars(document, temperature)
            bars += (bar for bar in found if bar.holds is not None or not vote_weight(document))
    bars.append(
        _accuracy("easy-VQA, official test, greedy", EASY_GREEDY, _row(easy, "greedy", None))
    )
    return bars


def vote_weight(document: dict[str, Any]) -> float:
    """What a candidate's copies counted for; 0 is the published tournament."""
    weight: float = document["judge"].get("vote_weight", 0.0)
    return weight


def _where(document: dict[str, Any] | None, temperature: float) -> str:
    """The end of a bar's name."""
    votes = 0.0 if document is None else vote_weight(document)
    return f" at temperature {temperature:g}" + (f", votes counted {votes:g}" if votes else "")


def _judge_bars(document: dict[str, Any] | None) -> Iterator[Bar]:
    report = None if document is None else document["judge_pairs"]
    number = "" if report is None else f", {report['num_pairs']} single-error pairs"
    for name, key in (("right", "accuracy"), ("consistent", "order_consistency")):
        value = None if report is None else report[key]
        yield _share(f"judge {name}{number}", JUDGE, value)


def _search_bars(document: dict[str, Any] | None, temperature: float) -> Iterator[Bar]:
    at = _where(document, temperature)
    stages = [_row(document, f"stage_beam:{size}", temperature) for size in RISING]
    name = f"right by stage-level N = {', '.join(map(str, RISING))}{at}"
    found = [row for row in stages if row is not None]
    if len(found) == len(RISING):
        shares = [row["accuracy"] for row in found]
        is_rising = all(low < high for low, high in pairwise(shares))
        yield Bar(name, "rising", " ".join(percent(share) for share in shares), is_rising)
    else:
        yield Bar(name, "rising")
    four = _row(document, "stage_beam:4", temperature)
    name = f"errors of N = 1 that N = 4 removes{at}"
    wanted = f">= {percent(ERRORS_REMOVED)} %, p < {MAX_P:g}"
    versus = {} if four is None else four["versus"].get("stage_beam:1", {})
    removed = versus.get("errors_removed")
    if removed is None:
        yield Bar(name, wanted)
    else:
        text = f"{percent(removed)} %, p {p_value(versus['p'])}"
        yield Bar(name, wanted, text, removed >= ERRORS_REMOVED and versus["p"] < MAX_P)
    for rival in RIVALS:
        yield _against(document, temperature, rival)


def _against(document: dict[str, Any] | None, temperature: float, rival: str) -> Bar:
    name = f"stage_beam:4 against {rival}{_where(document, temperature)}"
    rows = [_row(document, label, temperature) for label in ("stage_beam:4", rival)]
    found = _comparison(document, temperature, "stage_beam:4", rival)
    if rows[0] is None or rows[1] is None or found is None:
        return Bar(name, "more right")
    ours, theirs = rows[0]["accuracy"], rows[1]["accuracy"]
    text = f"{percent(ours)} against {percent(theirs)}, p {p_value(found['p'])}"
    return Bar(name, "more right", text, ours > theirs)


def _comparison(
    document: dict[str, Any] | None, temperature: float, first: str, second: str
) -> dict[str, Any] | None:
    for one in [] if document is None else document["comparisons"]:
        if one["temperature"] == temperature and {one["this"], one["that"]} == {first, second}:
            return one
    return None


def _row(
    document: dict[str, Any] | None, label: str, temperature: float | None
) -> dict[str, Any] | None:
    for row in [] if document is None else document["rows"]:
        if row["label"] == label and row["temperature"] == temperature:
            return row
    return None


def _accuracy(name: str, wanted: float, row: dict[str, Any] | None) -> Bar:
    if row is None:
        return _share(name, wanted, None)
    low, high = row["interval"]
    number = f"{name}, {row['num_questions']} questions"
    text = f"{percent(row['accuracy'])} % ({percent(low)}-{percent(high)})"
    return Bar(number, f">= {percent(wanted)} %", text, row["accuracy"] >= wanted)


def _share(name: str, wanted: float, value: float | None) -> Bar:
    if value is None:
        return Bar(name, f">= {percent(wanted)} %")
    return Bar(name, f">= {percent(wanted)} %", f"{percent(value)} %", value >= wanted)
