"""Who meets whom: the matches of a tournament, drawn before any is judged.

A slot is a candidate (0 .. n - 1) or, from n on, the winner of match `slot - n`. Draws come from the
sampler's generator with a token word that no token has, so they share nothing with sampling and do
not depend on results.
"""

from __future__ import annotations

from itertools import combinations

from stagebeam.bindings._core import philox4x32
from stagebeam.engine.params import Tournament

Fixture = tuple[int, int]  # (first, second) slots, in the order in which the judge sees them

_DRAW_WORD = 0xFFFFFFFF


def bracket(tournament: Tournament, num_candidates: int, seed: int, uid: int) -> list[Fixture]:
    """Every match of the tournament in playing order."""
    if tournament == "paper":
        return paper_bracket(num_candidates, seed, uid)
    if tournament == "knockout":
        return knockout_bracket(num_candidates)
    return list(combinations(range(num_candidates), 2))


def paper_bracket(num_candidates: int, seed: int, uid: int) -> list[Fixture]:
    """Pop two at random and put the winner back, until one is left: num_candidates - 1 matches."""
    entries = list(range(num_candidates))
    fixtures: list[Fixture] = []
    while len(entries) > 1:
        match = len(fixtures)
        words = philox4x32(seed, (match, _DRAW_WORD, uid & 0xFFFFFFFF, uid >> 32))
        first = entries.pop(words[0] * len(entries) >> 32)
        second = entries.pop(words[1] * len(entries) >> 32)
        fixtures.append((first, second))
        entries.append(num_candidates + match)
    return fixtures


def knockout_bracket(num_candidates: int) -> list[Fixture]:
    """Neighbours meet, then the winners; an odd one out goes to the front of the next round."""
    entries = list(range(num_candidates))
    fixtures: list[Fixture] = []
    while len(entries) > 1:
        following = entries[-1:] if len(entries) % 2 else []
        for left, right in zip(entries[0:-1:2], entries[1::2], strict=True):
            following.append(num_candidates + len(fixtures))
            fixtures.append((left, right))
        entries = following
    return fixtures


def levels(num_candidates: int, fixtures: list[Fixture]) -> list[int]:
    """Each match's round if matches are played as soon as their sides are known, 0-based."""
    level: list[int] = []
    for fixture in fixtures:
        waits = [level[slot - num_candidates] + 1 for slot in fixture if slot >= num_candidates]
        level.append(max(waits, default=0))
    return level
