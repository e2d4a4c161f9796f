"""Medians, percentiles and intervals of repeated measurements; no measurement is made here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_NUM_RESAMPLES = 2000
_LEAST_FOR_INTERVAL = 3


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentiles."""
    p20, median, p80 = np.percentile(values, [20, 50, 80])
    return {"median": float(median), "p20": float(p20), "p80": float(p80)}


def paired_ratio(those: Sequence[float], these: Sequence[float]) -> dict[str, Any]:
    """Median of that / this over rounds in which both ran, with a 95 % bootstrap interval.

    interval: None where fewer than three rounds are there to draw from
    """
    return _median(np.array(those) / np.array(these))


def paired_difference(those: Sequence[float], these: Sequence[float]) -> dict[str, Any]:
    """As `paired_ratio`, of that - this."""
    return _median(np.array(those) - np.array(these))


def _median(values: np.ndarray) -> dict[str, Any]:
    interval = None
    if len(values) >= _LEAST_FOR_INTERVAL:
        rng = np.random.default_rng(0)
        drawn = rng.choice(values, (_NUM_RESAMPLES, len(values)))
        low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        interval = [float(low), float(high)]
    return {"median": float(np.median(values)), "interval": interval, "rounds": len(values)}


def fitted_slope(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Least squares in logarithms: seconds ~ size ** exponent, and the plain line's slope.

    exponent over the sizes' upper half, where a fixed cost no longer hides the growth; 0 where that
    is a single size
    """
    half = len(sizes) // 2
    upper = np.log(sizes[half:]), np.log(seconds[half:])
    exponent = float(np.polyfit(*upper, 1)[0]) if len(sizes) - half > 1 else 0.0
    slope, fixed = np.polyfit(sizes, seconds, 1) if len(sizes) > 1 else (0, seconds[0])
    return {"exponent": exponent, "seconds_per_unit": float(slope), "seconds_fixed": float(fixed)}
