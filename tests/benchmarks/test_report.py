"""The report: what it takes over, its bars and the text it writes. Nothing is measured here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from stagebeam.benchmarks.speed import report
from stagebeam.benchmarks.speed.card import judging_text, readme_text, report_text
from stagebeam.benchmarks.speed.measure import Rounds, _runs
from stagebeam.benchmarks.speed.resume import Resumed
from stagebeam.benchmarks.speed.speed_bars import check_bars

MACHINE = {"cpu": "c", "cores": 2}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "p20": value, "p80": value}


def ratio(value: float) -> dict[str, Any]:
    return {"median": value, "interval": [value, value], "rounds": 3}


def bench(times: dict[str, float]) -> dict[str, Any]:
    """A document in which every contender takes its seconds, half of them judging."""
    return {
        "commit": "abc",
        "machine": MACHINE,
        "setting": {"lengths": {"stages": [60, 110, 170, 20]}},
        "summary": {
            name: {
                "seconds": spread(seconds),
                "phases": {"decode": spread(0.4 * seconds), "judge": spread(0.5 * seconds)},
                "judge_prompt_tokens": spread(1000),
                **({"decode_kv_bytes": spread(100), "ideal_kv_bytes": spread(98)}),
            }
            for name, seconds in times.items()
        },
        "ratios": [
            {
                "this": this,
                "that": that,
                "total": ratio(times[that] / times[this]),
                "judge": ratio(times[that] / times[this]),
            }
            for this in times
            for that in times
            if this != that
        ],
    }


def test_a_missed_bar_says_what_bounds_it() -> None:
    times = {"hf-published": 60.0, "hf-strong": 7.0, "ours-float32": 1.0, "ours-int8": 2.0}
    bars = {bar.name: bar for bar in check_bars({"bundled": bench(times)})}
    published = bars["bundled, N=4, best format: times faster than hf-published"]
    strong = bars["bundled, N=4, best format: times faster than hf-strong"]
    assert published.holds is True
    assert strong.holds is False
    assert strong.measured == "7.00 (7.00-7.00), ours-float32; 50% of its time is judge"
    memory = bars["bundled, N=4: KV memory over one trunk + N tails + image"]
    assert memory.holds is True
    assert bars["planner against the measured decode step, whole sweep"].holds is None


def test_the_planner_and_the_interfaces_are_held_to_every_point() -> None:
    points = [{"seconds": 1.0, "predicted": 1.2}, {"seconds": 1.0, "predicted": 0.7}]
    overhead = {"AsyncEngine, every event": ratio(1.01), "C code, every event": ratio(1.03)}
    documents = {
        "scaling": {"sweeps": {"branches": {"points": points}}},
        "overhead": {"ratios": overhead},
    }
    measured = [bar for bar in check_bars(documents) if bar.holds is not None]
    assert [bar.holds for bar in measured] == [False, True, False]
    assert measured[0].measured == "-30% to +20%, 1 of 2 points"


def test_texts_for_the_documents(tmp_path: Path) -> None:
    document = bench({"hf-published": 60.0, "hf-strong": 7.0, "ours-float32": 1.0})
    table = readme_text({"bundled": document})
    assert "| stagebeam, float32 | 1.00 | 60.0x | 7.0x |" in table
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "bench.md").write_text("# Speed: bundled\n\nrows\n")
    text = report_text({"bundled": document}, tmp_path)
    assert "\n### Speed: bundled\n\nrows" in text
    judged = judging_text(
        bench({"ours-bfloat16-generate-played": 9.0, "ours-bfloat16-played": 3.0})
    )
    assert "both orders: 3.00 times as fast" in judged


def test_runs_go_on_where_they_stopped() -> None:
    rounds = Rounds(rounds=2, seconds=5.0)
    records = {"a": [{"round": 0, "seconds_spent": 6.0}], "b": []}
    assert list(_runs(["a", "b"], rounds, records)) == [("b", 0), ("b", 1)]


def test_records_of_other_code_are_not_taken_over(tmp_path: Path) -> None:
    options = argparse.Namespace(output=tmp_path)

    def document(commit: str) -> dict[str, Any]:
        return {"commit": commit, "machine_speed": {"flops": 1.0}, "setting": {"n": (1, 2)}}

    first = Resumed(document("one"), options, "bench")
    first.records(["a"])["a"].append({"round": 0})
    first.save()
    assert Resumed(document("one"), options, "bench").records(["a", "b"]) == {
        "a": [{"round": 0}],
        "b": [],
    }
    assert Resumed(document("two"), options, "bench").records(["a"]) == {"a": []}


def test_a_report_runs_what_is_missing(tmp_path: Path, monkeypatch, capsys) -> None:
    commands = []

    def run(command: list[str], **_: Any) -> argparse.Namespace:
        commands.append(command[2:])
        return argparse.Namespace(returncode=report.INCOMPLETE)

    monkeypatch.setattr(report.subprocess, "run", run)
    monkeypatch.setattr(report.provenance, "commit", lambda: "abc")
    done = tmp_path / "bundled"
    done.mkdir()
    (done / "bench.json").write_text(json.dumps({"commit": "abc", "records": {}, "summary": {}}))
    (done / "bench.md").write_text("table")
    arguments = ["--output", str(tmp_path), "--seconds", "30"]
    assert report.main(arguments) == report.INCOMPLETE
    assert len(commands) == 1
    assert commands[0][:2] == ["stagebeam.cli", "bench"]
    assert "--budget" in commands[0]
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report.main(["--only", "nothing"])
