"""The bars that the bundled checkpoint is held to, and the card made of an evaluation's results."""

from __future__ import annotations

import json

import pytest

from stagebeam.benchmarks.accuracy.bars import check_bars
from stagebeam.benchmarks.accuracy.card import BEGIN, END, main
from stagebeam.benchmarks.accuracy.contenders import parse_contenders
from stagebeam.benchmarks.accuracy.summary import (
    Record,
    Result,
    all_comparisons,
    majority_baseline,
    make_rows,
)

NUM = 100


def records(num_right: int, num_valid: int = NUM, kind: str = "count") -> list[Record]:
    """The first `num_right` of 100 questions right."""
    return [
        Record(
            index=index, kind=kind, question="q", expected="1", conclusion="1",
            is_right=index < num_right, is_valid=index < num_valid, completion_tokens=10,
            judge_prompt_tokens=0, judge_completion_tokens=0, judge_calls=0, disagreements=0,
            malformed_verdicts=0, seconds=0.1,
        )
        for index in range(NUM)
    ]  # fmt: skip


def make_document(
    shares: dict[str, int], *, data="shapes", judge=None, num_valid=NUM, model="ab", votes=0.0
):
    """A finished document; `shares` gives every search's right answers of 100."""
    results = [
        Result(
            contender=parse_contenders(label)[0],
            temperature=None if label == "greedy" else 1.0,
            records=records(num_right, num_valid),
        )
        for label, num_right in shares.items()
    ]
    return {
        "benchmark": "accuracy", "data": data, "split": "test", "num_questions": NUM,
        "is_complete": True, "rows": make_rows(results), "comparisons": all_comparisons(results),
        "majority": majority_baseline(results[0].records), "judge_pairs": judge,
        "temperature_search": None, "model": {"sha256": model * 32}, "command": "stagebeam x",
        "machine": {"cpu": "a cpu"}, "date": "2026-01-01T00:00:00", "judge": {"vote_weight": votes},
    }  # fmt: skip


def judged(accuracy: float, consistency: float):
    shares = {
        "num_pairs": 600, "accuracy": accuracy, "interval": [0.1, 1.0],
        "single_order_accuracy": 0.5, "order_consistency": consistency, "first_chosen": 0.5,
    }  # fmt: skip
    return {**shares, "by_target": {"caption": shares}, "by_error": {"color": shares}}


ALL = {
    "greedy": 95, "stage_beam:1": 80, "stage_beam:2": 85, "stage_beam:4": 90, "stage_beam:8": 92,
    "best_of_n:10": 89, "sentence_beam:2": 84,
}  # fmt: skip


def verdicts(documents) -> dict[str, bool | None]:
    return {bar.name: bar.holds for bar in check_bars(documents)}


def test_every_bar_holds():
    easy = make_document({"greedy": 99}, data="easy-vqa")
    found = check_bars([make_document(ALL, judge=judged(0.95, 0.91)), easy])
    assert len(found) == 9
    assert all(bar.holds for bar in found), found
    by_name = {bar.name: bar.measured for bar in found}
    assert by_name["errors of N = 1 that N = 4 removes at temperature 1"] == "50.0 %, p 0.002"
    assert by_name["right by stage-level N = 1, 2, 4, 8 at temperature 1"] == "80.0 85.0 90.0 92.0"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"greedy": 89}, "right, greedy, 100 questions"),
        ({"stage_beam:8": 90}, "right by stage-level N = 1, 2, 4, 8 at temperature 1"),
        ({"stage_beam:4": 86}, "errors of N = 1 that N = 4 removes at temperature 1"),
        ({"best_of_n:10": 90}, "stage_beam:4 against best_of_n:10 at temperature 1"),
        ({"sentence_beam:2": 91}, "stage_beam:4 against sentence_beam:2 at temperature 1"),
    ],
)
def test_a_bar_that_is_missed(change, name):
    assert verdicts([make_document({**ALL, **change})])[name] is False


def test_few_errors_removed_are_no_proof():
    # A third of the errors, but 4 questions of 12 may be chance.
    found = verdicts([make_document({**ALL, "stage_beam:1": 88, "stage_beam:4": 92})])
    assert found["errors of N = 1 that N = 4 removes at temperature 1"] is False


def test_judge_and_format_bars():
    found = verdicts([make_document(ALL, judge=judged(0.95, 0.5), num_valid=99)])
    assert found["judge right, 600 single-error pairs"] is True
    assert found["judge consistent, 600 single-error pairs"] is False
    assert found["format valid, greedy"] is False


def test_counted_votes_are_bars_of_their_own():
    published = make_document({**ALL, "stage_beam:8": 90})
    found = verdicts([published, make_document(ALL, votes=1.0)])
    name = "right by stage-level N = 1, 2, 4, 8 at temperature 1"
    assert found[name] is False
    assert found[f"{name}, votes counted 1"] is True
    assert found["stage_beam:4 against best_of_n:10 at temperature 1, votes counted 1"] is True
    assert len(found) == len(verdicts([published])) + 4
    few = {label: share for label, share in ALL.items() if label.startswith("stage_beam")}
    votes = verdicts([published, make_document(few, votes=1.0)])
    assert len(votes) == len(verdicts([published])) + 2  # what was not run is not held to anything


def test_what_was_not_measured_has_no_verdict():
    assert set(verdicts([make_document({"stage_beam:1": 80})]).values()) == {None}
    assert set(verdicts([]).values()) == {None}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(make_document(ALL, judge=judged(0.95, 0.91))))
    easy = tmp_path / "easy.json"
    easy.write_text(json.dumps(make_document({"greedy": 97}, data="easy-vqa")))
    return [str(folder), str(easy)]


def test_the_card_goes_between_the_marks(results, tmp_path, capsys):
    page = tmp_path / "checkpoint.md"
    page.write_text(f"before\n\n{BEGIN}\n\nstale\n\n{END}\n\nafter\n")
    for _ in range(2):
        assert main([*results, "--into", str(page)]) == 0
        assert "8 of 9 bars hold" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n\nModel sha256 abab")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "stale" not in text
    assert "| easy-VQA, official test, greedy, 100 questions | >= 98.0 % | 97.0 %" in text
    assert "| **no** |" in text
    assert "| stage_beam | 8 |" in text
    assert "### easy-vqa, test split" in text
    assert "each kind's most common answer" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.md", "easy.json", "shapes"]


def test_votes_stand_in_a_section_of_their_own(results, tmp_path, capsys):
    votes = tmp_path / "votes.json"
    votes.write_text(json.dumps(make_document(ALL, votes=1.0)))
    assert main([*results, str(votes)]) == 0
    assert "### shapes, test split, 100 questions, votes counted 1" in capsys.readouterr().out
    assert main([*results, str(votes), str(votes)]) == 2
    assert "two results of the same data" in capsys.readouterr().err


def test_the_card_is_printed_or_given_as_json(results, capsys):
    assert main(results) == 0
    assert "| right, greedy, 100 questions | >= 90.0 % | 95.0 % (88.8-97.8) | yes |" in (
        capsys.readouterr().out
    )
    assert main([*results, "--json"]) == 0
    assert [bar["holds"] for bar in json.loads(capsys.readouterr().out)].count(True) == 8


def test_what_makes_no_card(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(make_document(ALL, data="x", model="cd")))
    unfinished = tmp_path / "unfinished.json"
    unfinished.write_text(json.dumps({**make_document(ALL), "is_complete": False}))
    (tmp_path / "text.json").write_text("no JSON")
    for arguments, message in (
        ([*results, "--into", str(page)], "must hold"),
        ([results[0], str(other)], "are of 2 models"),
        ([results[0], results[0]], "two results of the same data"),
        ([str(unfinished)], "is not complete"),
        ([str(tmp_path / "text.json")], "is no result"),
        ([str(tmp_path / "none.json")], "does not exist"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert page.read_text() == "no marks"
