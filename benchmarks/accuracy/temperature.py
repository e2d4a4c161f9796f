"""The temperature at which one sampled answer errs in a wanted share of cases, by bisection.

The error is taken to grow with the temperature. Chosen on validation questions, so that test
questions have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stagebeam.engine.errors import InvalidInputError

WANTED = (0.15, 0.25)
MAX_TRIALS = 8
_DIGITS = 3


@dataclass(slots=True, kw_only=True)
class TemperatureSearch:
    """What was tried, (temperature, error) in order; `temperature` is None where none was found."""

    low: float
    high: float
    wanted: tuple[float, float]
    temperature: float | None = None
    trials: list[tuple[float, float]] = field(default_factory=list)


def parse_range(text: str) -> tuple[float, float]:
    """LOW:HIGH as two temperatures."""
    low, colon, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (0.0, 0.0)
    if not (colon and 0 < ends[0] < ends[1] < float("inf")):
        raise InvalidInputError(
            f"--find-temperature needs LOW:HIGH with 0 < LOW < HIGH, as in 0.5:3, got {text!r}"
        )
    return ends


def find_temperature(
    low: float, high: float, error_at: Callable[[float], float]
) -> TemperatureSearch:
    """Halve [low, high] until the error lies in WANTED; the ends themselves are not tried."""
    search = TemperatureSearch(low=low, high=high, wanted=WANTED)
    for _ in range(MAX_TRIALS):
        middle = round((low + high) / 2, _DIGITS)
        error = error_at(middle)
        search.trials.append((middle, error))
        if error < search.wanted[0]:
            low = middle
        elif error > search.wanted[1]:
            high = middle
        else:
            search.temperature = middle
            break
    return search
