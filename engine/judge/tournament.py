"""One stage's tournament: which candidate wins, and the matches that say so.

A sub-generator that policies run with `yield from`. The bracket is drawn first; what needs no judge
(a malformed side, identical texts, a failed gate) is settled at once, and the rest is asked for in
rounds. Invariant: the schedule decides only what is asked and when, never a match's outcome.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagebeam.engine.branch import Branch, branch_uid
from stagebeam.engine.events import MatchJudged
from stagebeam.engine.judge.bracket import Fixture, bracket, levels
from stagebeam.engine.judge.schedule import expected_cost, round_cost
from stagebeam.engine.outputs import Match, MatchKind
from stagebeam.engine.params import JudgeParams
from stagebeam.engine.search.requests import Gate, Judge, Pair, Report, Request, Verdict

Key = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What a stage's candidates compete for, and how.

    name:         the stage, for events; stage, round: its place in the search
    criterion, hints: what the judge is told
    has_gate:     candidates' texts are checked on their own first
    prompt_chars: length of the judge's prompt without the candidates, to estimate costs
    """

    name: str
    criterion: str
    judge: JudgeParams
    seed: int
    hints: tuple[tuple[str, str], ...] = ()
    has_gate: bool = False
    stage: int = 0
    round: int = 0
    prompt_chars: int = 0


@dataclass(slots=True)
class _Standing:
    """What is known about a contest's candidates so far."""

    texts: list[str]
    same: list[int]  # the lowest candidate with the same text
    is_well_formed: list[bool]
    votes: list[float]  # for each candidate's text, in log-odds
    is_symmetric: (
        bool  # the judge asks both orders: the verdict on (b, a) is that on (a, b) negated
    )
    has_passed: list[bool]
    verdicts: dict[Key, Verdict] = field(default_factory=dict)

    def key(self, a: int, b: int) -> Key:
        """The pair as it is asked: equal texts count as the lowest candidate that has them."""
        a, b = self.same[a], self.same[b]
        return (b, a) if self.is_symmetric and b < a else (a, b)

    def outcome(self, a: int, b: int) -> Match | None:
        """The match of `a` (first) against `b`, or None where a verdict is still needed."""
        if not (self.is_well_formed[a] and self.is_well_formed[b]):
            if self.is_well_formed[a] == self.is_well_formed[b]:
                return _tie(a, b, "malformed")
            return _settled(a, b, self.is_well_formed[a], "malformed")
        if self.same[a] == self.same[b]:
            return _tie(a, b, "identical")
        if not self.has_passed[a]:  # the first is checked first: it loses to a faulty second too
            return _settled(a, b, False, "gate")
        if not self.has_passed[b]:
            return _settled(a, b, True, "gate")
        verdict = self.verdicts.get(self.key(a, b))
        return None if verdict is None else self._judged(a, b, verdict)

    def _judged(self, a: int, b: int, verdict: Verdict) -> Match:
        is_swapped = self.key(a, b) != (self.same[a], self.same[b])
        log_odds = -verdict.log_odds if is_swapped else verdict.log_odds
        log_odds += self.votes[a] - self.votes[b]
        is_tie = log_odds == 0
        return Match(
            first=a,
            second=b,
            winner=min(a, b) if is_tie else (a if log_odds > 0 else b),
            probability=sigmoid(log_odds),
            is_disagreement=verdict.is_disagreement,
            is_malformed_verdict=verdict.is_malformed,
            is_tie=is_tie,
            verdict_text=verdict.text,
        )


def play(
    contest: Contest, candidates: Sequence[Branch], is_well_formed: Sequence[bool] | None = None
) -> Generator[Request, Any, tuple[int, tuple[Match, ...]]]:
    """Run the tournament; returns the winner's place in `candidates` and the matches in bracket order.

    is_well_formed: which candidates ended well, by default those whose own stop was reached
    """
    count = len(candidates)
    fixtures = bracket(
        contest.judge.tournament,
        count,
        contest.seed,
        branch_uid(contest.stage, 0, contest.round),
    )
    texts = [candidate.inner for candidate in candidates]
    lowest: dict[str, int] = {}
    if is_well_formed is None:
        is_well_formed = [candidate.is_well_formed for candidate in candidates]
    copies = Counter(text for text, is_one in zip(texts, is_well_formed, strict=True) if is_one)
    weight = contest.judge.vote_weight
    standing = _Standing(
        texts=texts,
        same=[lowest.setdefault(text, i) for i, text in enumerate(texts)],
        is_well_formed=list(is_well_formed),
        votes=[weight * math.log(max(copies[text], 1)) for text in texts],
        is_symmetric=contest.judge.has_both_orders,
        has_passed=[True] * count,
    )
    if contest.has_gate:
        yield from _check_gate(contest, standing)
    if _scores_all(contest, candidates, fixtures, standing):
        possible = possible_pairs(count, fixtures, standing)
        yield from _ask(contest, standing, [pair for pairs in possible for pair in pairs if pair])
    num_reported = 0
    while True:
        matches, missing = _play_on(count, fixtures, standing)
        while num_reported < len(matches) and (match := matches[num_reported]) is not None:
            yield Report(event=MatchJudged(stage=contest.name, match=match))
            num_reported += 1
        if not missing:
            break
        yield from _ask(contest, standing, missing)
    played = tuple(match for match in matches if match is not None)
    return _champion(contest.judge.tournament, count, played), played


def sigmoid(log_odds: float) -> float:
    """The probability of these log-odds, infinite ones included."""
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1.0 + odds)


def possible_pairs(
    num_candidates: int, fixtures: Sequence[Fixture], standing: _Standing
) -> list[list[Key | None]]:
    """For each match the pairs that may meet in it, None for one that needs no judge."""
    entrants = [[candidate] for candidate in range(num_candidates)]
    possible: list[list[Key | None]] = []
    for first, second in fixtures:
        pairs: list[Key | None] = []
        winners: set[int] = set()
        for a in entrants[first]:
            for b in entrants[second]:
                match = standing.outcome(a, b)
                pairs.append((a, b) if match is None else None)
                winners |= {a, b} if match is None else {match.winner}
        entrants.append(sorted(winners))
        possible.append(pairs)
    return possible


def _check_gate(contest: Contest, standing: _Standing) -> Generator[Request, Any, None]:
    """Ask about each distinct text once, where at least two could meet."""
    texts = standing.texts
    distinct: dict[str, int] = {}
    for i, text in enumerate(texts):
        if standing.is_well_formed[i]:
            distinct.setdefault(text, i)
    if len(distinct) < 2:
        return
    gate = Gate(
        reasonings=tuple(distinct),
        indices=tuple(distinct.values()),
        hints=contest.hints,
        stage=contest.stage,
        round=contest.round,
    )
    passed = dict(zip(distinct, (yield gate), strict=True))
    standing.has_passed = [passed.get(text, True) for text in texts]


def _scores_all(
    contest: Contest, candidates: Sequence[Branch], fixtures: list[Fixture], standing: _Standing
) -> bool:
    if contest.judge.schedule != "auto":
        return contest.judge.schedule == "all"
    possible = possible_pairs(len(candidates), fixtures, standing)
    level = levels(len(candidates), fixtures)
    by_round = [
        [pairs for pairs, at in zip(possible, level, strict=True) if at == number]
        for number in range(max(level, default=-1) + 1)
    ]
    keys = {standing.key(*pair) for pairs in possible for pair in pairs if pair}
    rows = [
        row for a, b in keys for row in ([(a, b), (b, a)] if standing.is_symmetric else [(a, b)])
    ]
    lengths = {i: len(candidate.token_ids) for i, candidate in enumerate(candidates)}
    num_chars = sum(len(candidate.text) for candidate in candidates)
    head = contest.prompt_chars * sum(lengths.values()) / max(num_chars, 1)
    is_generated = contest.judge.mode == "generate"
    num_orders = 2 if standing.is_symmetric else 1
    return round_cost(rows, lengths, head, is_generated) <= expected_cost(
        by_round, lengths, head, num_orders, is_generated
    )


def _ask(
    contest: Contest, standing: _Standing, pairs: Iterable[Key]
) -> Generator[Request, Any, None]:
    """Judge these pairs in one round, each distinct question once."""
    count = len(standing.texts)
    keys = list(dict.fromkeys(standing.key(a, b) for a, b in pairs))
    if not keys:
        return
    verdicts = yield Judge(
        pairs=tuple(
            Pair(first=standing.texts[a], second=standing.texts[b], index=a * count + b)
            for a, b in keys
        ),
        criterion=contest.criterion,
        hints=contest.hints,
        stage=contest.stage,
        round=contest.round,
    )
    standing.verdicts.update(zip(keys, verdicts, strict=True))


def _play_on(
    num_candidates: int, fixtures: Sequence[Fixture], standing: _Standing
) -> tuple[list[Match | None], list[Key]]:
    """Every match that can be decided by now, and the pairs known to meet that need a verdict."""
    in_slot: list[int | None] = list(range(num_candidates))
    matches: list[Match | None] = []
    missing: list[Key] = []
    for first, second in fixtures:
        a, b = in_slot[first], in_slot[second]
        match = None
        if a is not None and b is not None:
            match = standing.outcome(a, b)
            if match is None:
                missing.append((a, b))
        matches.append(match)
        in_slot.append(None if match is None else match.winner)
    return matches, missing


def _champion(tournament: str, num_candidates: int, matches: Sequence[Match]) -> int:
    if tournament != "round_robin":
        return matches[-1].winner if matches else 0
    wins = [0] * num_candidates
    for match in matches:
        wins[match.winner] += 1
    return wins.index(max(wins))


def _settled(a: int, b: int, is_first: bool, kind: MatchKind) -> Match:
    return Match(
        first=a, second=b, winner=a if is_first else b, probability=float(is_first), kind=kind
    )


def _tie(a: int, b: int, kind: MatchKind) -> Match:
    return Match(first=a, second=b, winner=min(a, b), probability=0.5, kind=kind, is_tie=True)
