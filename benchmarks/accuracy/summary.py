"""From marked answers to a run's rows: shares with intervals, costs, and paired tests between rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from stagebeam.benchmarks.accuracy.answer_log import Record
from stagebeam.benchmarks.accuracy.contenders import WIDTHLESS, Contender
from stagebeam.benchmarks.accuracy.marking import plain
from stagebeam.benchmarks.accuracy.significance import discordant, mcnemar_p, wilson_interval

STAGE_BEAM_1 = "stage_beam:1"
_COSTS = (
    "completion_tokens",
    "judge_prompt_tokens",
    "judge_completion_tokens",
    "judge_calls",
    "disagreements",
    "malformed_verdicts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One search's answers at one temperature (None for greedy, which has none)."""

    contender: Contender
    temperature: float | None
    records: Sequence[Record]
    commit: str | None = None

    @property
    def is_right(self) -> list[bool]:
        return [record.is_right for record in self.records]


def make_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results as JSON-ready rows, in their order, each with its paired tests."""
    return [_row(result, results) for result in results]


def compare(first: Result, second: Result) -> dict[str, Any]:
    """The paired test of `first` against `second`; errors_removed is the share of second's errors."""
    only_first, only_second = discordant(first.is_right, second.is_right)
    num_errors = len(second.records) - sum(second.is_right)
    return {
        "only_this_right": only_first,
        "only_that_right": only_second,
        "errors_removed": (only_first - only_second) / num_errors if num_errors else None,
        "p": mcnemar_p(only_first, only_second),
    }


def all_comparisons(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every pair of rows that share a temperature, the later one against the earlier one."""
    return [
        {
            "temperature": this.temperature if this.temperature is not None else that.temperature,
            "this": this.contender.label,
            "that": that.contender.label,
            **compare(this, that),
        }
        for that, this in combinations(results, 2)
        if _may_meet(this, that)
    ]


def share(marks: Iterable[bool]) -> dict[str, Any]:
    """Count, share and 95 % interval of True."""
    listed = list(marks)
    low, high = wilson_interval(sum(listed), len(listed))
    return {
        "num_questions": len(listed),
        "num_right": sum(listed),
        "accuracy": sum(listed) / len(listed),
        "interval": [low, high],
    }


def majority_baseline(records: Sequence[Record]) -> dict[str, Any]:
    """What the most common answer of each kind would score on these very questions."""
    answers: dict[str, Counter[str]] = {}
    for record in records:
        answers.setdefault(record.kind, Counter())[plain(record.expected)] += 1
    tops = {kind: count.most_common(1)[0] for kind, count in sorted(answers.items())}
    by_kind = {
        kind: {"answer": answer, "accuracy": num_right / answers[kind].total()}
        for kind, (answer, num_right) in tops.items()
    }
    num_right = sum(count for _, count in tops.values())
    return {"accuracy": num_right / len(records), "by_kind": by_kind}


def _row(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    records = result.records
    kinds = sorted({record.kind for record in records if record.kind})
    seconds = sum(record.seconds for record in records)
    return {
        "strategy": result.contender.strategy,
        "beam_size": result.contender.beam_size,
        "label": result.contender.label,
        "temperature": result.temperature,
        **share(result.is_right),
        "format_valid": sum(record.is_valid for record in records) / len(records),
        "by_kind": {
            kind: share(record.is_right for record in records if record.kind == kind)
            for kind in kinds
        },
        **{name: sum(getattr(record, name) for record in records) for name in _COSTS},
        "tokens_per_question": sum(r.completion_tokens for r in records) / len(records),
        "seconds": seconds,
        "seconds_per_question": seconds / len(records),
        "versus": {
            other.contender.label: compare(result, other)
            for other in results
            if other is not result and _may_meet(result, other) and _is_reference(result, other)
        },
        "right": "".join(str(int(mark)) for mark in result.is_right),
        "commit": result.commit,
    }


def _is_reference(result: Result, other: Result) -> bool:
    """Rows are tested against N=1 of their own search and against one sampled answer by stages."""
    is_same_search = other.contender.strategy == result.contender.strategy
    return other.contender.label == STAGE_BEAM_1 or (
        is_same_search and other.contender.beam_size == 1
    )


def _may_meet(first: Result, second: Result) -> bool:
    return (
        first.temperature == second.temperature
        or first.contender.strategy in WIDTHLESS[:1]
        or second.contender.strategy in WIDTHLESS[:1]
    )
