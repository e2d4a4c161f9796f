"""Intervals, tests, the list of searches, marking, the temperature search: without a model."""

from __future__ import annotations

import math
from itertools import product

import pytest

from stagebeam.benchmarks.accuracy.answer_log import Record
from stagebeam.benchmarks.accuracy.contenders import Contender, parse_contenders
from stagebeam.benchmarks.accuracy.judging import error_kind
from stagebeam.benchmarks.accuracy.marking import is_right, is_valid_format
from stagebeam.benchmarks.accuracy.questions import draw_questions, read_held_out
from stagebeam.benchmarks.accuracy.significance import discordant, mcnemar_p, wilson_interval
from stagebeam.benchmarks.accuracy.summary import (
    Result,
    all_comparisons,
    majority_baseline,
    make_rows,
)
from stagebeam.benchmarks.accuracy.temperature import MAX_TRIALS, find_temperature, parse_range
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.stages import LLAVA_COT_PLAN
from stagebeam.training.shapes.judge_pairs import JudgePair
from stagebeam.training.shapes.scene import split_of


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(right, count, low, high) -> None:
    found = wilson_interval(right, count)
    assert found == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(count - right, count)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]), abs=1e-12)


def test_wilson_solves_its_own_equation() -> None:
    """The ends are the shares that a score test at 5 % just does not refuse."""
    for right, count in ((3, 10), (137, 200), (19, 20)):
        for end in wilson_interval(right, count):
            score = (right / count - end) / math.sqrt(end * (1 - end) / count)
            assert abs(score) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("right", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_what_is_no_share(right, count) -> None:
    with pytest.raises(ValueError, match="num_right"):
        wilson_interval(right, count)


def test_mcnemar_against_brute_force() -> None:
    """All outcomes of a fair coin that are as uneven as the one seen, or more."""
    for flips in range(1, 11):
        outcomes = [sum(coins) for coins in product((0, 1), repeat=flips)]
        for first in range(flips + 1):
            uneven = abs(first - flips / 2)
            as_uneven = sum(abs(heads - flips / 2) >= uneven for heads in outcomes)
            assert mcnemar_p(first, flips - first) == pytest.approx(as_uneven / 2**flips)


def test_mcnemar_against_known_values() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(10, 2) == pytest.approx(0.03857, abs=1e-5)  # binomial test of 2 in 12
    assert mcnemar_p(1500, 1400) == pytest.approx(0.0660, abs=1e-3)  # no overflow
    with pytest.raises(ValueError, match=">= 0"):
        mcnemar_p(-1, 2)


def test_discordant_counts() -> None:
    assert discordant([True, True, False, False], [True, False, True, False]) == (1, 1)
    with pytest.raises(ValueError, match="argument 2"):
        discordant([True], [True, False])


def test_contenders_are_read() -> None:
    found = parse_contenders("stage_beam:1,2, 8,best_of_n:1,10,sentence_beam:2,greedy,single:1")
    assert [one.label for one in found] == [
        *("stage_beam:1", "stage_beam:2", "stage_beam:8"),
        *("best_of_n:1", "best_of_n:10", "sentence_beam:2", "greedy", "single"),
    ]
    assert found[1].search.strategy == "stage_beam"
    assert found[1].search.beam_size == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected greedy"),
        ("beam:2", "got 'beam'"),
        ("stage_beam", "needs beam sizes"),
        ("stage_beam:", "needs beam sizes"),
        ("stage_beam:0", "needs beam sizes"),
        ("stage_beam:-1", "needs beam sizes"),
        ("stage_beam:2000", "beam_size must be"),
        ("4,stage_beam:1", "begin with 4"),
        ("greedy:4", "takes no beam size"),
        ("greedy,4", "takes no beam size"),
        ("stage_beam:1,2,1", "stage_beam:1 twice"),
        ("swires:2", "needs a scorer"),
    ],
)
def test_bad_contenders_are_refused(text, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        parse_contenders(text)


@pytest.mark.parametrize(
    ("conclusion", "expected", "right"),
    [
        ("2", "2", True),
        (" Yes.\n", "yes", True),
        ("big  Red\ncircle", "big red circle", True),
        ("2", "12", False),
        ("", "", False),
        ("yes yes", "yes", False),
        ("1.5", "15", False),
    ],
)
def test_marking(conclusion, expected, right) -> None:
    assert is_right(conclusion, expected) is right


WHOLE = "<SUMMARY> a </SUMMARY>\n\n<CAPTION> b </CAPTION><REASONING>c</REASONING>\n<CONCLUSION> d </CONCLUSION>"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (WHOLE, True),
        (f"\n{WHOLE}\n\n", True),
        (WHOLE.replace("<CAPTION> b </CAPTION>", ""), False),
        (WHOLE.replace("</CONCLUSION>", ""), False),
        (f"{WHOLE} and", False),
        (f"so {WHOLE}", False),
        (WHOLE.replace(" b ", " <SUMMARY> "), False),
        (WHOLE.replace(" b ", " </REASONING> "), False),
        (f"{WHOLE}{WHOLE}", False),
        ("", False),
    ],
)
def test_format(text, valid) -> None:
    assert is_valid_format(text, LLAVA_COT_PLAN) is valid


def test_drawn_questions_are_of_their_split_and_independent_of_their_number() -> None:
    drawn = list(draw_questions("test", 7, 30))
    assert {split_of(one.scene) for one in drawn} == {"test"}
    assert {one.question.kind for one in drawn} >= {"count", "exist", "compare", "relation"}
    fewer = read_held_out("shapes", "test", 7, 5, BUNDLED_CHECKPOINT, LLAVA_COT_PLAN)
    assert [one.text for one in fewer] == [one.question.text for one in drawn[:5]]
    assert [one.image.tobytes() for one in fewer] == [one.image.tobytes() for one in drawn[:5]]
    other = list(draw_questions("validation", 7, 30))
    assert not {one.scene for one in drawn} & {one.scene for one in other}


def test_easy_vqa_is_the_official_test() -> None:
    pytest.importorskip("easy_vqa", reason="easy-vqa is not installed (pip install easy-vqa)")
    everything = read_held_out("easy-vqa", "test", 7, None, BUNDLED_CHECKPOINT, LLAVA_COT_PLAN)
    assert len(everything) == 9673
    assert {one.kind for one in everything} == {"yes/no", "shape", "color"}
    few, more = (
        read_held_out("easy-vqa", "test", 7, count, BUNDLED_CHECKPOINT, LLAVA_COT_PLAN)
        for count in (10, 50)
    )
    assert more[:10] == few
    with pytest.raises(InvalidInputError, match="validation split"):
        read_held_out("easy-vqa", "validation", 7, None, BUNDLED_CHECKPOINT, LLAVA_COT_PLAN)


def record(index: int, is_right: bool, expected: str = "1", kind: str = "count") -> Record:
    return Record(
        index=index,
        kind=kind,
        question="?",
        expected=expected,
        conclusion=expected if is_right else "x",
        is_right=is_right,
        is_valid=True,
        completion_tokens=10,
        judge_prompt_tokens=3,
        judge_completion_tokens=0,
        judge_calls=2,
        disagreements=1,
        malformed_verdicts=0,
        seconds=0.5,
    )


def result(strategy, beam_size: int, right: str, temperature: float | None = 1.0) -> Result:
    records = [record(i, mark == "1") for i, mark in enumerate(right)]
    return Result(
        contender=Contender(strategy, beam_size), temperature=temperature, records=records
    )


def test_rows_and_their_paired_tests() -> None:
    results = [
        result("greedy", 1, "1110", None),
        result("stage_beam", 1, "1000"),
        result("stage_beam", 4, "1011"),
        result("best_of_n", 1, "0000"),
        result("best_of_n", 10, "0100"),
        result("stage_beam", 1, "1111", 2.0),
    ]
    rows = make_rows(results)
    assert [sorted(row["versus"]) for row in rows[1:5]] == [
        [],
        ["stage_beam:1"],
        ["stage_beam:1"],
        ["best_of_n:1", "stage_beam:1"],
    ]
    four = rows[2]
    assert four["accuracy"] == 0.75
    assert four["right"] == "1011"
    assert four["completion_tokens"] == 40
    assert four["seconds"] == 2.0
    versus = four["versus"]["stage_beam:1"]
    assert versus == {
        "only_this_right": 2,
        "only_that_right": 0,
        "errors_removed": pytest.approx(2 / 3),
        "p": 0.5,
    }
    met = {(c["this"], c["that"], c["temperature"]) for c in all_comparisons(results)}
    assert ("best_of_n:10", "stage_beam:4", 1.0) in met
    assert ("stage_beam:1", "greedy", 2.0) in met
    assert ("stage_beam:1", "stage_beam:4", 2.0) not in met
    assert len(met) == 5 + 6


def test_the_majority_baseline() -> None:
    records = [record(0, True, "yes", "a"), record(1, True, "no", "a"), record(2, True, "Yes", "a")]
    baseline = majority_baseline([*records, record(3, True, "red", "b")])
    assert baseline["by_kind"]["a"] == {"answer": "yes", "accuracy": pytest.approx(2 / 3)}
    assert baseline["accuracy"] == 0.75


def test_the_temperature_is_bisected() -> None:
    search = find_temperature(0.5, 4.5, lambda t: t / 10)
    assert search.trials == [(2.5, 0.25)]
    assert search.temperature == 2.5
    search = find_temperature(0.0, 1.0, lambda t: 0.0 if t < 0.9 else 1.0 if t > 0.95 else 0.2)
    assert search.temperature == 0.938
    assert [t for t, _ in search.trials] == [0.5, 0.75, 0.875, 0.938]
    search = find_temperature(0.0, 1.0, lambda t: 0.9)
    assert search.temperature is None
    assert len(search.trials) == MAX_TRIALS


@pytest.mark.parametrize("text", ["1", "2:1", "a:b", "0:1", "1:inf", "1:2:3", ":"])
def test_bad_temperature_ranges_are_refused(text) -> None:
    with pytest.raises(InvalidInputError, match="LOW:HIGH"):
        parse_range(text)
    assert parse_range("0.5:3") == (0.5, 3.0)


@pytest.mark.parametrize(
    ("right", "wrong", "kind"),
    [
        ("top left big red circle.", "top left big blue circle.", "color"),
        ("Count the red crosses.", "Count the red squares.", "shape"),
        ("top left big red cross.", "top left small red cross.", "size"),
        ("top left big red cross.", "bottom left big red cross.", "place"),
        ("top left big red cross, center x.", "center x.", "object"),
        ("nothing", "big red cross", "object"),
        ("big red cross yes 1. So 1.", "big red cross no 0. So 0.", "yes/no"),
        ("3", "4", "number"),
        ("a is more than b", "a is not more than b", "wording"),
        ("a, b", "a", "length"),
    ],
)
def test_kinds_of_errors(right, wrong, kind) -> None:
    assert error_kind(JudgePair("caption", "?", (), right, wrong, True)) == kind
