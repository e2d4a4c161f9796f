"""`stagebeam train curves`: what is drawn from a run's metrics, and what is told where nothing can be."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from stagebeam.cli import main
from stagebeam.training.curves import Series, read_log

LINES = [
    {"step": 10, "loss": 4.0, "loss_answer": 5.0, "grad_norm": 1.0, "phase": "see", "seconds": 9.0},
    {"step": 20, "loss": 2.0, "loss_answer": 2.5, "learning_rate": 1e-3, "phase": "see"},
    {"step": 20, "eval_matching": 0.25},
    {"step": 30, "loss": 1.0, "loss_judge-caption": 0.7, "learning_rate": 0.0, "phase": "mix"},
    {"step": 30, "eval_matching": 0.5, "eval_well_formed": 1.0},
]


def write(path, lines=LINES, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def curves(*arguments) -> int:
    return main(["train", "curves", *map(str, arguments)])


def test_series_and_phases(tmp_path):
    log = read_log(write(tmp_path / "metrics.jsonl"))
    assert [series.name for series in log.series] == [
        *("loss", "loss_answer", "loss_judge-caption", "eval_matching", "eval_well_formed"),
        *("grad_norm", "learning_rate"),
    ]
    assert log.series[0].steps == [10, 20, 30]
    assert log.series[0].values == [4.0, 2.0, 1.0]
    assert log.series[3].values == [0.25, 0.5]
    assert log.phases == [("see", 10), ("mix", 20)]


def test_smoothing_keeps_a_constant_and_follows_a_fall():
    assert Series("loss", [1, 2, 3], [2.0, 2.0, 2.0]).smoothed() == pytest.approx([2.0] * 3)
    falling = Series("loss", [1, 2, 3], [4.0, 2.0, 1.0]).smoothed()
    assert falling[0] == pytest.approx(4.0)
    assert 4.0 > falling[1] > falling[2] > 1.0
    assert Series("grad_norm", [1, 2], [0.0, 1.0]).smoothed()[1] == pytest.approx(1 / 1.9)


def test_a_picture_beside_the_log(tmp_path, capsys):
    write(tmp_path / "metrics.jsonl")
    assert curves(tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(tmp_path / "curves.png")
    assert document["last"]["eval_matching"] == 0.5
    assert 1.0 < document["last"]["loss"] < 4.0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 500
        assert len(picture.convert("RGB").getcolors(10**6)) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_another_place_and_a_log_beside_a_checkpoint(tmp_path, capsys):
    log = write(tmp_path / "training_log.jsonl", LINES[:1])
    assert curves(tmp_path, "--output", tmp_path / "x.png") == 0
    assert curves(log, "--output", tmp_path / "y.png") == 0
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size == pytest.approx(
        (tmp_path / "y.png").stat().st_size, rel=0.2
    )


def test_damaged_and_infinite_numbers_are_left_out(tmp_path, caplog):
    log = write(tmp_path / "metrics.jsonl", tail='{"step": 40, "loss": NaN}\n{"step": 50, "lo')
    assert read_log(log).series[0].steps == [10, 20, 30]
    assert "line 7: left out a damaged line" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a log"),
        (["none.jsonl"], "does not exist"),
        (["."], "holds no log"),
        (["empty.jsonl"], "holds no metrics"),
    ],
)
def test_bad_logs(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    assert curves(*arguments) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["empty.jsonl"]


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    write(tmp_path / "metrics.jsonl")
    assert curves(tmp_path, "--output", tmp_path / "none" / "x.png") == 1
    assert "cannot write" in capsys.readouterr().err


def test_only_curves_takes_a_second_argument(tmp_path, capsys):
    assert main(["train", "data", "log", "--output", str(tmp_path)]) == 2
    assert "takes no second argument" in capsys.readouterr().err
