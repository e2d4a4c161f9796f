"""Intervals and tests for shares of right answers, exact where that is cheap; no dependency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(num_right: int, num_all: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, without continuity correction (Wilson 1927)."""
    if not 0 <= num_right <= num_all or num_all < 1:
        raise ValueError(f"expected 0 <= num_right <= num_all >= 1, got {num_right} of {num_all}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, squared = num_right / num_all, z * z
    center = (share + squared / (2 * num_all)) / (1 + squared / num_all)
    spread = share * (1 - share) / num_all + squared / (4 * num_all * num_all)
    half = z * math.sqrt(spread) / (1 + squared / num_all)
    low = 0.0 if num_right == 0 else max(0.0, center - half)
    high = 1.0 if num_right == num_all else min(1.0, center + half)
    return low, high


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test: a fair coin over the questions that differ.

    only_first, only_second: questions that only the one, or only the other, has right
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must be >= 0, got {only_first} and {only_second}")
    flips = only_first + only_second
    tail = sum(math.comb(flips, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, tail * 2 / 2**flips)


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """(only the first right, only the second right) over the same questions in the same order."""
    both = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in both), sum(b and not a for a, b in both)
