"""What the native race's records say: medians, ratios within a round, shares of a bound.

Knows records only, no model and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from stagebeam.benchmarks.speed.native_setting import FORMATS, Record
from stagebeam.benchmarks.speed.statistics import paired_ratio, spread

OURS = "stagebeam "


def decode_summary(records: Sequence[Record]) -> dict[str, Any]:
    """A row a format and number of branches, against the floor of each round's own moment."""
    rows = []
    cases = {(r["format"], r["branches"]) for r in records}
    for name, branches in sorted(cases, key=lambda case: (FORMATS.index(case[0]), case[1])):
        own = [r for r in records if (r["format"], r["branches"]) == (name, branches)]
        alone = [r for r in records if (r["format"], r["branches"]) == (name, 1)]
        floors = [(r["weight_bytes"] + r["kv_bytes"]) / r["bandwidth"] for r in own]
        bounds = [max(f, r["multiply_adds"] / r["gemm_rate"]) for f, r in zip(floors, own)]
        seconds = [r["step_seconds"] for r in own]
        rows.append(
            {
                "format": name,
                "branches": branches,
                "step_seconds": spread(seconds),
                "tokens_per_second": branches / median(seconds),
                "bandwidth": spread([r["bandwidth"] for r in own]),
                "gemm_rate": median(r["gemm_rate"] for r in own),
                "percent_of_floor": spread([100 * f / s for f, s in zip(floors, seconds)]),
                "over_bound": spread([s / b for s, b in zip(seconds, bounds)]),
                "over_one_branch": paired_ratio(seconds, [r["step_seconds"] for r in alone]),
                "kv_over_least": own[0]["kv_bytes"] / own[0]["least_kv_bytes"],
            }
        )
    return {"rows": rows}


def rates_summary(records: Sequence[Record]) -> dict[str, Any]:
    """Each contender's tokens a second, and ours over each other's."""
    rates = by_contender(records)
    spreads = {name: spread(values) for name, values in rates.items()}
    return {"tokens_per_second": spreads, "ours_over": _ours_over(rates, paired_ratio)}


def seconds_summary(records: Sequence[Record]) -> dict[str, Any]:
    """Each contender's seconds, and others' over ours."""
    seconds = by_contender(records)
    spreads = {name: spread(values) for name, values in seconds.items()}
    over = _ours_over(seconds, lambda ours, other: paired_ratio(other, ours))
    return {"seconds": spreads, "ours_over": over}


def _ours_over(
    values: dict[str, list[float]], ratio: Callable[[list[float], list[float]], Any]
) -> dict[str, Any]:
    """How many times as fast each of ours is as each other contender."""
    return {
        f"{ours} / {other}": ratio(values[ours], values[other])
        for ours in values
        if ours.startswith(OURS)
        for other in values
        if not other.startswith(OURS)
    }


def best_summary(records: Sequence[Record]) -> dict[str, Any]:
    """Each contender's highest value."""
    return {"best": {name: max(values) for name, values in by_contender(records).items()}}


def only_summary(records: Sequence[Record]) -> dict[str, Any]:
    """The one record of a part that is measured once."""
    (record,) = records
    return {key: value for key, value in record.items() if key not in ("round", "bandwidth")}


def by_contender(records: Sequence[Record]) -> dict[str, list[float]]:
    """Values in the rounds' order."""
    values: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda r: r["round"]):
        values.setdefault(record["contender"], []).append(record["value"])
    return values
