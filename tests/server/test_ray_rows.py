"""`evaluate` and `annotate` over Ray Data: what they write is what they write without Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stagebeam.cli import main

EVALUATE = (
    "evaluate shapes --strategies stage_beam:2 --temperature 3.0 --top-p 1.0 --num-questions 6"
)
CACHE = f"--kv-cache-bytes {64 << 20}"


def answers(folder: Path) -> list[dict]:
    """The logged answers without what depends on the clock."""
    (log,) = (folder / "answers").iterdir()
    rows = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("num_engines", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluate(local_ray, tmp_path, num_engines) -> None:
    """Begun without Ray and gone on with on it: the same answers as without it."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    assert main(f"{EVALUATE} {CACHE} --threads 1 --output {plain}".split()) == 0
    wanted = answers(plain)
    assert len(wanted) == 6
    main(
        f"{EVALUATE.replace('questions 6', 'questions 2')} {CACHE} --threads 1 --output {other}".split()
    )
    assert answers(other) == wanted[:2]
    assert main(f"{EVALUATE} {CACHE} --ray --engines {num_engines} --output {other}".split()) == 0
    assert answers(other) == wanted
    documents = [json.loads((folder / "results.json").read_text()) for folder in (plain, other)]
    assert documents[0]["engine"] == documents[1]["engine"]
    assert documents[0]["rows"][0]["right"] == documents[1]["rows"][0]["right"]


@pytest.mark.slow
def test_a_workers_fault_is_told_in_its_words(local_ray, tmp_path, capsys) -> None:
    status = main(f"{EVALUATE} --kv-cache-bytes 1 --ray --output {tmp_path / 'bad'}".split())
    assert status == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "evaluate: " in one]
    assert "kv_cache_bytes" in line


@pytest.mark.slow
def test_annotate(local_ray, tmp_path) -> None:
    options = "annotate shapes --tasks answer,gate --num-examples 120 --seed 3"
    for name, more in (("plain", ""), ("ray", "--ray --workers 1")):
        assert main(f"{options} {more} --output {tmp_path / name}".split()) == 0
    plain, on_ray = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("plain", "ray")
    )
    assert len(plain) > 120
    assert plain == on_ray


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{EVALUATE} --ray --engines 99", "fewer workers"),
        (f"{EVALUATE} --ray --judge-pairs 4", "without --ray"),
        ("annotate easy-vqa --ray --output new", "without it"),
        ("annotate shapes --ray --workers 1 --cpus-each 99 --output new", "this Ray has"),
    ],
)
def test_what_ray_cannot_do(local_ray, tmp_path, monkeypatch, capsys, command, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("command", [EVALUATE, "annotate shapes --output new"])
def test_without_ray_the_extra_is_named(monkeypatch, tmp_path, capsys, command) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command.split(), "--ray"]) == 2
    assert "pip install 'stagebeam[ray]'" in capsys.readouterr().err
