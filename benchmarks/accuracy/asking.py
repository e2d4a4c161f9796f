"""Puts held-out questions to an engine under one search, and marks the answers.

A question's sampling seed comes from the run's seed and its number alone: the same for every search,
so that comparing searches question by question is fair.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from stagebeam.benchmarks.accuracy.answer_log import AnswerLog, Record
from stagebeam.benchmarks.accuracy.contenders import Contender
from stagebeam.benchmarks.accuracy.marking import is_right, is_valid_format
from stagebeam.benchmarks.accuracy.questions import HeldOut
from stagebeam.bindings._core import philox4x32
from stagebeam.engine.outputs import Answer
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.stages import StagePlan

_SEED_DOMAIN = 0xE7A1  # counter word of these seeds


class Answering(Protocol):
    """What answers: an `Engine`, or many of them on Ray."""

    path: Path
    plan: StagePlan
    dtype: str
    device: torch.device
    backend: str
    max_branches: int

    @property
    def default_sampling(self) -> SamplingParams: ...

    def iter_answers(
        self, questions: Sequence[Any], *, search: SearchParams, judge: JudgeParams
    ) -> Iterator[Answer]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows of a run share.

    identity: what names the run beside the search and the sampling (data, split, seed, model hash)
    commit:   of the code that runs, None where it is not known
    folder:   where answers are logged
    """

    engine: Answering
    judge: JudgeParams
    seed: int
    identity: dict[str, Any]
    commit: str | None
    folder: Path


def ask(
    setting: Setting,
    questions: Sequence[HeldOut],
    contender: Contender,
    sampling: SamplingParams,
    title: str,
) -> tuple[list[Record], str | None]:
    """Every question's marked answer, in order, and the commit of the code that gave the first.

    Questions that an earlier run of the same settings logged are not asked again.
    """
    settings = {
        **setting.identity,
        "search": asdict(contender.search),
        "sampling": asdict(sampling),
        "judge": asdict(setting.judge),
    }
    with AnswerLog(setting.folder / f"{_file_name(title)}", settings, setting.commit) as log:
        known = {record.index: record for record in log.records}
        todo = [one for one in questions if not _is_known(one, known.get(one.index))]
        bar = tqdm(
            total=len(questions),
            initial=len(questions) - len(todo),
            desc=title,
            unit="question",
            dynamic_ncols=True,
            disable=None,  # off where stderr is no terminal
        )
        with bar:
            answers = setting.engine.iter_answers(
                [_as_asked(one, sampling, setting.seed) for one in todo],
                search=contender.search,
                judge=setting.judge,
            )
            before = time.perf_counter()
            for one, answer in zip(todo, answers, strict=True):
                now = time.perf_counter()
                record = _mark(one, answer, setting.engine, now - before)
                log.add(record)
                known[one.index] = record
                before = now
                bar.update()
    return [known[one.index] for one in questions], log.commit


def question_seed(seed: int, index: int) -> int:
    """The 64-bit sampling seed of question `index`."""
    words = philox4x32(seed, (index, _SEED_DOMAIN, 0, 0))
    return words[0] | words[1] << 32


def _file_name(title: str) -> str:
    return title.replace(":", "-").replace(" ", "_") + ".jsonl"


def _is_known(one: HeldOut, record: Record | None) -> bool:
    return record is not None and (record.question, record.expected) == (one.text, one.answer)


def _as_asked(one: HeldOut, sampling: SamplingParams, seed: int) -> dict[str, Any]:
    return {
        "question": one.text,
        "image": one.image,
        "sampling": replace(sampling, seed=question_seed(seed, one.index)),
    }


def _mark(one: HeldOut, answer: Answer, engine: Answering, seconds: float) -> Record:
    usage = answer.usage
    return Record(
        index=one.index,
        kind=one.kind,
        question=one.text,
        expected=one.answer,
        conclusion=answer.conclusion,
        is_right=is_right(answer.conclusion, one.answer),
        is_valid=answer.finish_reason == "tag" and is_valid_format(answer.text, engine.plan),
        completion_tokens=usage.completion_tokens,
        judge_prompt_tokens=usage.judge_prompt_tokens,
        judge_completion_tokens=usage.judge_completion_tokens,
        judge_calls=usage.judge_calls,
        disagreements=usage.disagreements,
        malformed_verdicts=usage.malformed_verdicts,
        seconds=round(seconds, 6),
    )
