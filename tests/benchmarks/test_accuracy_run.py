"""Whole evaluations on the bundled checkpoint: the document, the files, going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.accuracy.asking import question_seed
from stagebeam.benchmarks.accuracy.contenders import parse_contenders
from stagebeam.benchmarks.accuracy.plot import draw_plot
from stagebeam.benchmarks.accuracy.run import Evaluation, evaluate
from stagebeam.cli import main
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams

NUM_QUESTIONS = 4


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine(kv_cache_bytes=64 << 20) as loaded:
        yield loaded
    torch.set_num_threads(before)


@pytest.fixture
def wanted(engine: Engine) -> Evaluation:
    return Evaluation(
        data="shapes",
        split="test",
        seed=7,
        num_questions=NUM_QUESTIONS,
        contenders=parse_contenders("stage_beam:1,2,greedy"),
        sampling=replace(engine.default_sampling, temperature=1.0),
        judge=JudgeParams(),
    )


def stripped(document: dict) -> list[dict]:
    """The rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in document["rows"]]


def test_the_command_prints_and_writes_one_document(tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    status = main(
        f"evaluate shapes --strategies stage_beam:1,2,sentence_beam:2,greedy "
        f"--temperature 3.0 --top-p 1.0 --seed 7 --num-questions {NUM_QUESTIONS} --judge-pairs 6 --json "
        f"--kv-cache-bytes {64 << 20} --output {output}".split()
    )
    printed = capsys.readouterr().out
    assert status == 0
    document = json.loads(printed)
    assert document == json.loads((output / "results.json").read_text())
    assert document["is_complete"]
    assert document["num_questions"] == NUM_QUESTIONS
    assert {(row["strategy"], row["beam_size"]) for row in document["rows"]} == {
        *(("stage_beam", 1), ("stage_beam", 2), ("sentence_beam", 2), ("greedy", 1)),
    }
    for row in document["rows"]:
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert 0 <= row["format_valid"] <= 1
        assert sum(map(int, row["right"])) == row["num_right"]
        assert sum(part["num_questions"] for part in row["by_kind"].values()) == NUM_QUESTIONS
        assert row["completion_tokens"] > 0
        assert row["seconds"] > 0
        assert (row["judge_calls"] > 0) == (row["beam_size"] > 1)
        assert row["temperature"] == (None if row["strategy"] == "greedy" else 3.0)
    assert document["judge_pairs"]["num_pairs"] == 6
    assert len(document["judge_pairs"]["by_target"]) == 6
    assert document["model"]["path"] == "assets/shapes (bundled)"
    assert len(document["model"]["sha256"]) == 64
    assert {"machine", "versions", "commit", "command", "seed", "date"} <= set(document)
    table = (output / "results.md").read_text()
    assert "| sentence_beam | 2 |" in table
    assert "Not complete" not in table
    with Image.open(output / "accuracy.png") as image:
        assert image.format == "PNG"
        assert image.width > 400


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not(
    engine: Engine, wanted: Evaluation, tmp_path: Path, monkeypatch
) -> None:
    short = replace(wanted.sampling, max_tokens=24)
    contenders = parse_contenders("single,stage_beam:1,greedy")
    wanted = replace(wanted, contenders=contenders, sampling=short)
    whole = evaluate(engine, wanted, tmp_path / "whole")
    asked: list[int] = []
    plain = Engine.iter_answers

    def stopping_after(count: int):
        def iter_answers(self, questions, **arguments):
            asked.append(len(questions))
            for answer in plain(self, questions, **arguments):
                yield answer
                nonlocal count
                count -= 1
                if not count:
                    raise KeyboardInterrupt

        return iter_answers

    output = tmp_path / "stopped"
    monkeypatch.setattr(Engine, "iter_answers", stopping_after(NUM_QUESTIONS + 2))
    with pytest.raises(KeyboardInterrupt):
        evaluate(engine, wanted, output)
    partial = json.loads((output / "results.json").read_text())
    assert not partial["is_complete"]
    assert [row["label"] for row in partial["rows"]] == ["greedy"]
    assert "Not complete" in (output / "results.md").read_text()
    # A kill in the middle of a write leaves a torn line.
    torn = output / "answers" / "test_single_at_1.jsonl"
    torn.write_text(torn.read_text() + '{"index": 2, "kind": "co')
    asked.clear()
    monkeypatch.setattr(Engine, "iter_answers", stopping_after(-1))
    resumed = evaluate(engine, wanted, output)
    assert asked == [0, NUM_QUESTIONS - 2, NUM_QUESTIONS]
    assert stripped(resumed) == stripped(whole)
    assert resumed["comparisons"] == whole["comparisons"]
    asked.clear()
    evaluate(engine, replace(wanted, num_questions=NUM_QUESTIONS - 1), output)
    assert asked == [0, 0, 0]  # a shorter run's questions are the first of a longer one's
    evaluate(engine, replace(wanted, contenders=wanted.contenders[:1]), output, is_restart=True)
    assert asked[3:] == [NUM_QUESTIONS]


def test_answers_of_other_settings_are_not_taken(
    engine: Engine, wanted: Evaluation, tmp_path: Path, caplog
) -> None:
    few = replace(wanted, num_questions=2, contenders=parse_contenders("single"))
    first = evaluate(engine, few, tmp_path)
    again = evaluate(engine, replace(few, sampling=replace(few.sampling, top_p=0.5)), tmp_path)
    assert "another run" in caplog.text
    assert first["rows"][0]["seconds"] != again["rows"][0]["seconds"]


def test_seeds_depend_on_the_question_alone() -> None:
    seeds = {(seed, index): question_seed(seed, index) for seed in (0, 7) for index in range(500)}
    assert len(set(seeds.values())) == len(seeds)
    assert question_seed(7, 3) == seeds[7, 3]


def test_the_temperature_is_chosen_on_validation_and_evaluated(
    engine: Engine, wanted: Evaluation, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("stagebeam.benchmarks.accuracy.temperature.WANTED", (0.0, 1.0))
    monkeypatch.setattr("stagebeam.benchmarks.accuracy.run.MAX_VALIDATION", 1)
    found = replace(
        wanted,
        num_questions=2,
        contenders=parse_contenders("single"),
        temperature_range=(0.5, 1.5),
        has_own_temperature=False,
    )
    document = evaluate(engine, found, tmp_path)
    search = document["temperature_search"]
    assert search["trials"][0][0] == search["temperature"] == 1.0
    assert [row["temperature"] for row in document["rows"]] == [1.0]
    logs = sorted(path.name for path in (tmp_path / "answers").iterdir())
    assert logs == ["test_single_at_1.jsonl", "validation_stage_beam-1_at_1.jsonl"]
    asked = [
        {
            json.loads(line)["question"]
            for line in (tmp_path / "answers" / name).open()
            if "?" in line
        }
        for name in logs
    ]
    assert [len(questions) for questions in asked] == [2, 1]
    assert not asked[0] & asked[1]


def test_a_folder_in_the_published_layout(
    engine: Engine, wanted: Evaluation, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (72, 72), "white").save(data / "a.png")
    rows = [
        {
            "id": str(i),
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": f"How many red circles are there? {i}"},
                {"from": "gpt", "value": f"<CAPTION> x </CAPTION> <CONCLUSION> {i} </CONCLUSION>"},
            ],
        }
        for i in range(3)
    ]
    rows[2]["conversations"][1]["value"] = "none"  # a direct reply, without stages
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    greedy = replace(
        wanted, data=str(data), num_questions=None, contenders=parse_contenders("greedy")
    )
    document = evaluate(engine, greedy, tmp_path / "out")
    assert document["num_questions"] == 3
    assert document["rows"][0]["by_kind"] == {}
    lines = (tmp_path / "out" / "answers" / "test_greedy.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["expected"] for line in lines] == ["0", "1", "none"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("nowhere", "expected shapes, easy-vqa or a folder"),
        ("shapes --strategies beam:2", "expected greedy"),
        ("shapes --find-temperature 2", "LOW:HIGH"),
        ("shapes --seed -1", "--seed must be"),
        ("shapes --strategies none", "leaves nothing to do"),
    ],
)
def test_bad_commands_are_one_line(arguments, reason, capsys) -> None:
    assert main(["evaluate", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_the_judge_alone(tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    status = main(
        f"evaluate shapes --strategies none --judge-pairs 6 --num-questions 1 --json "
        f"--kv-cache-bytes {64 << 20} --output {output}".split()
    )
    document = json.loads(capsys.readouterr().out)
    assert status == 0
    assert document["is_complete"]
    assert document["rows"] == document["comparisons"] == []
    report = document["judge_pairs"]
    assert report["num_pairs"] == 6
    assert 0 <= report["accuracy"] <= 1
    assert 0 <= report["order_consistency"] <= 1
    assert sorted(path.name for path in output.iterdir()) == [
        *("answers", "results.json", "results.md")
    ]


def test_only_shapes_has_pairs_and_a_validation_split(wanted: Evaluation) -> None:
    with pytest.raises(InvalidInputError, match="--judge-pairs"):
        replace(wanted, data="easy-vqa", num_judge_pairs=3)
    with pytest.raises(InvalidInputError, match="--find-temperature"):
        replace(wanted, data="easy-vqa", temperature_range=(1.0, 2.0))


def test_texts_are_judged_as_in_a_search(engine: Engine) -> None:
    """A search's match has the probability that `Engine.judge` gives its candidates' texts."""
    with Image.open(provenance.ROOT / "assets" / "examples" / "scene.png") as opened:
        image = opened.convert("RGB")
    question = "How many red circles are there?"
    sampling = replace(engine.default_sampling, temperature=2.0, seed=3)
    answer = engine.answer(question, image, sampling=sampling)
    played = [
        (stage, match)
        for stage in answer.stages
        for match in stage.matches
        if match.kind == "judged"
    ]
    assert played
    texts = {stage.name: stage.text for stage in answer.stages}
    for stage, match in played:
        plan = next(one for one in engine.plan.stages if one.name == stage.name)
        pair = (stage.candidates[match.first].inner, stage.candidates[match.second].inner)
        hints = [(name, texts[name]) for name in plan.hints]
        (verdict,) = engine.judge(question, image, [pair], plan.criterion, hints)
        probability = torch.tensor(verdict.log_odds).sigmoid().item()
        assert probability == pytest.approx(match.probability, abs=1e-4)
    stats = engine.stats()
    assert stats["num_free"] == stats["num_blocks"]


@pytest.mark.parametrize(
    ("pairs", "criterion", "hints"),
    [
        ([], "x", ()),
        (["ab"], "x", ()),
        ([("a", 1)], "x", ()),
        ([("a", "b")], "", ()),
        ([("a", "b")], "x", ["caption"]),
    ],
)
def test_texts_that_cannot_be_judged(engine: Engine, pairs, criterion, hints) -> None:
    with pytest.raises(InvalidInputError):
        engine.judge("q?", None, pairs, criterion, hints)


def test_the_plot_has_a_panel_a_temperature(tmp_path: Path) -> None:
    rows = [
        {
            "strategy": strategy,
            "beam_size": n,
            "temperature": temperature,
            "accuracy": 0.8 + 0.01 * n,
            "interval": [0.75 + 0.01 * n, 0.84 + 0.01 * n],
        }
        for temperature in (1.0, 1.6)
        for strategy, sizes in (("stage_beam", (1, 2, 4, 8)), ("best_of_n", (1, 10)))
        for n in sizes
    ]
    rows.append(
        {
            "strategy": "greedy",
            "beam_size": 1,
            "temperature": None,
            "accuracy": 0.93,
            "interval": [0.91, 0.945],
        }
    )
    head = {"data": "shapes", "split": "test", "num_questions": 1000}
    draw_plot({**head, "rows": rows}, tmp_path / "two.png")
    draw_plot({**head, "rows": rows[-1:]}, tmp_path / "greedy.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "greedy.png") as greedy:
        assert two.format == greedy.format == "PNG"
        assert two.width > 1.5 * greedy.width


def test_the_content_hash_sees_every_file_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = provenance.content_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("not part of it")
    assert provenance.content_hash(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"1")
    second = provenance.content_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert len({first, second, provenance.content_hash(tmp_path)}) == 3
