"""One evaluation from questions to a document: temperatures, then every search, then the judge.

What is finished is written as it finishes, so that a killed run keeps it and the same command goes
on. The document is plain data; table.py and plot.py show it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.accuracy.asking import Answering, Setting, ask
from stagebeam.benchmarks.accuracy.contenders import Contender
from stagebeam.benchmarks.accuracy.judging import judge_pairs, judge_report
from stagebeam.benchmarks.accuracy.questions import SHAPES, HeldOut, read_held_out
from stagebeam.benchmarks.accuracy.summary import (
    Result,
    all_comparisons,
    majority_baseline,
    make_rows,
)
from stagebeam.benchmarks.accuracy.table import to_markdown
from stagebeam.benchmarks.accuracy.temperature import TemperatureSearch, find_temperature
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams, SamplingParams

MAX_VALIDATION = 400  # questions to choose the temperature on: a share of 20 % is known within 4
RESULTS, TABLE, PLOT = "results.json", "results.md", "accuracy.png"
_SHARED_SAMPLING = ("top_p", "top_k", "min_p", "max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What to measure.

    data:              shapes, easy-vqa, or a folder in the LLaVA-CoT-100k layout
    num_questions:     None takes all there are (1000 of shapes)
    sampling:          without a seed: every question has its own
    temperature_range: search it for the temperature where one answer errs in 15 to 25 % of
                       validation questions, and evaluate there
    has_own_temperature: evaluate at `sampling.temperature` (too)
    num_judge_pairs:   single-error pairs for the judge alone, 0 for none
    """

    data: str
    split: str
    seed: int
    num_questions: int | None
    contenders: Sequence[Contender]
    sampling: SamplingParams
    judge: JudgeParams
    temperature_range: tuple[float, float] | None = None
    has_own_temperature: bool = True
    num_judge_pairs: int = 0

    def __post_init__(self) -> None:
        if self.num_judge_pairs < 0:
            raise InvalidInputError(f"--judge-pairs must be >= 0, got {self.num_judge_pairs}")
        for given, name in (
            (self.num_judge_pairs, "--judge-pairs"),
            (self.temperature_range, "--find-temperature"),
        ):
            if given and self.data != SHAPES:
                raise InvalidInputError(f"{name} needs the shapes data set, got {self.data}")


def evaluate(
    engine: Answering, evaluation: Evaluation, output: Path, *, is_restart: bool = False
) -> dict[str, Any]:
    """Run the evaluation; the document is also in `output`, with the answers behind it.

    Answers that `output` holds from a run of the same settings are taken, unless `is_restart`.
    """
    questions = _read(engine, evaluation, evaluation.split)
    setting = _setting(engine, evaluation, output)
    if is_restart:
        shutil.rmtree(setting.folder, ignore_errors=True)
    setting.folder.mkdir(parents=True, exist_ok=True)
    document = _head(engine, evaluation, len(questions), setting)
    temperatures = [evaluation.sampling.temperature] if evaluation.has_own_temperature else []
    if evaluation.temperature_range is not None:
        search = _search_temperature(setting, evaluation, evaluation.temperature_range)
        document["temperature_search"] = asdict(search)
        write_document(document, output)
        if search.temperature is not None and search.temperature not in temperatures:
            temperatures.append(search.temperature)
    results: list[Result] = []
    for contender, temperature in _plan(evaluation.contenders, temperatures):
        results.append(_measure(setting, evaluation, questions, contender, temperature))
        document |= {
            "rows": make_rows(results),
            "comparisons": all_comparisons(results),
            "majority": majority_baseline(results[0].records),
        }
        write_document(document, output)
    if evaluation.num_judge_pairs:
        assert isinstance(engine, Engine), "pairs are judged by one engine, here"
        judged = judge_pairs(engine, evaluation.split, evaluation.seed, evaluation.num_judge_pairs)
        document["judge_pairs"] = judge_report(judged)
    document["is_complete"] = True
    write_document(document, output)
    return document


def write_document(document: dict[str, Any], output: Path) -> None:
    """Write results.json and results.md, each whole or not at all."""
    for name, text in (
        (RESULTS, json.dumps(document, indent=1, ensure_ascii=False) + "\n"),
        (TABLE, to_markdown(document)),
    ):
        part = output / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, output / name)


def _plan(
    contenders: Sequence[Contender], temperatures: Sequence[float]
) -> list[tuple[Contender, float | None]]:
    """Every search at every temperature; greedy, which has none, once."""
    greedy: list[tuple[Contender, float | None]] = [
        (one, None) for one in contenders if one.strategy == "greedy"
    ]
    return greedy + [
        (one, t) for t in temperatures for one in contenders if one.strategy != "greedy"
    ]


def _measure(
    setting: Setting,
    evaluation: Evaluation,
    questions: Sequence[HeldOut],
    contender: Contender,
    temperature: float | None,
) -> Result:
    sampling = replace(evaluation.sampling, temperature=temperature or 0.0)
    heat = "" if temperature is None else f" at {temperature:g}"
    title = f"{evaluation.split} {contender.label}{heat}"
    records, commit = ask(setting, questions, contender, sampling, title)
    return Result(contender=contender, temperature=temperature, records=records, commit=commit)


def _search_temperature(
    setting: Setting, evaluation: Evaluation, ends: tuple[float, float]
) -> TemperatureSearch:
    split = "validation"
    questions = _read(setting.engine, evaluation, split)[:MAX_VALIDATION]
    on_validation = replace(setting, identity={**setting.identity, "split": split})
    trial = replace(evaluation, split=split)

    def error_at(temperature: float) -> float:
        result = _measure(on_validation, trial, questions, Contender("stage_beam", 1), temperature)
        return 1 - sum(result.is_right) / len(questions)

    return find_temperature(*ends, error_at)


def _read(engine: Answering, evaluation: Evaluation, split: str) -> list[HeldOut]:
    return read_held_out(
        evaluation.data,
        split,
        evaluation.seed,
        evaluation.num_questions,
        engine.path,
        engine.plan,
    )


def _setting(engine: Answering, evaluation: Evaluation, output: Path) -> Setting:
    identity = {
        "data": evaluation.data,
        "split": evaluation.split,
        "seed": evaluation.seed,
        "model": provenance.content_hash(engine.path),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": engine.device.type,
        "backend": engine.backend,
    }
    return Setting(
        engine=engine,
        judge=evaluation.judge,
        seed=evaluation.seed,
        identity=identity,
        commit=provenance.commit(),
        folder=output / "answers",
    )


def _head(
    engine: Answering, evaluation: Evaluation, num_questions: int, setting: Setting
) -> dict[str, Any]:
    """Everything but the results."""
    sampling = asdict(evaluation.sampling)
    return {
        "benchmark": "accuracy",
        "data": evaluation.data,
        "split": evaluation.split,
        "num_questions": num_questions,
        "seed": evaluation.seed,
        "sampling": {name: sampling[name] for name in _SHARED_SAMPLING},
        "judge": asdict(evaluation.judge),
        "is_complete": False,
        "rows": [],
        "comparisons": [],
        "majority": None,
        "temperature_search": None,
        "judge_pairs": None,
        "model": provenance.model(engine.path),
        "engine": {
            **{name: setting.identity[name] for name in ("dtype", "device", "backend")},
            "max_branches": engine.max_branches,
        },
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": setting.commit,
        "command": provenance.command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
