"""Tournaments on their own: invariants of the winner, what is asked, the gate and the brackets."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagebeam.engine.branch import Branch
from stagebeam.engine.judge.bracket import bracket, levels
from stagebeam.engine.judge.tournament import Contest, play, sigmoid
from stagebeam.engine.params import JudgeParams
from stagebeam.engine.search.requests import Gate, Judge, Report, Verdict

TOURNAMENTS = ("paper", "knockout", "round_robin")


def branch(index: int, inner: str, finish_reason: str = "tag") -> Branch:
    return Branch(
        key=index + 1,
        index=index,
        text=inner,
        inner=inner,
        token_ids=tuple(inner.encode()),
        cumulative_logprob=0.0,
        finish_reason=finish_reason,
    )


def contest(
    tournament="paper", schedule="played", mode="logits", seed=3, votes=0.0, **changes
) -> Contest:
    judge = JudgeParams(mode=mode, tournament=tournament, schedule=schedule, vote_weight=votes)
    return Contest(name="s", criterion="c", judge=judge, seed=seed, **changes)


def run(contest, candidates, odds, passes=lambda text: True):
    """(winner, matches, requests); odds(first, second) is the verdict, passes(text) the gate."""
    policy = play(contest, candidates)
    requests, reply = [], None
    while True:
        try:
            request = policy.send(reply)
        except StopIteration as stop:
            return (*stop.value, requests)
        requests.append(request)
        if isinstance(request, Judge):
            reply = [Verdict(log_odds=odds(pair.first, pair.second)) for pair in request.pairs]
        elif isinstance(request, Gate):
            reply = [passes(text) for text in request.reasonings]
        else:
            assert isinstance(request, Report)
            reply = None


def by_quality(first: str, second: str) -> float:
    return float(int(first.split()[0]) - int(second.split()[0]))


@settings(max_examples=150, deadline=None)
@given(
    qualities=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    endings=st.lists(
        st.sampled_from(["tag", "tag", "tag", "eos", "length"]), min_size=9, max_size=9
    ),
    tournament=st.sampled_from(TOURNAMENTS),
    schedule=st.sampled_from(["all", "played", "auto"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_transitive_judge_finds_a_best_candidate(qualities, endings, tournament, schedule, seed):
    candidates = [
        branch(i, f"{quality} {i % 3}", endings[i]) for i, quality in enumerate(qualities)
    ]
    winner, matches, requests = run(
        contest(tournament, schedule, seed=seed), candidates, by_quality
    )
    sound = [i for i, c in enumerate(candidates) if c.is_well_formed]
    assert 0 <= winner < len(candidates)
    if sound:
        assert winner in sound
        assert qualities[winner] == max(qualities[i] for i in sound)
    size = len(candidates)
    assert len(matches) == (size * (size - 1) // 2 if tournament == "round_robin" else size - 1)
    for match in matches:
        assert match.winner in (match.first, match.second)
        assert (match.probability > 0.5) == (match.winner == match.first and not match.is_tie)
    if tournament != "round_robin":
        losers = [m.second if m.winner == m.first else m.first for m in matches]
        assert sorted([*losers, winner]) == list(range(size))  # each but the winner loses once
    asked = [pair for r in requests if isinstance(r, Judge) for pair in r.pairs]
    assert len({frozenset((p.first, p.second)) for p in asked}) == len(asked)
    assert all(p.first != p.second for p in asked)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), uid=st.integers(0, 2**62))
def test_brackets_are_trees_that_pair_any_two_once(size, seed, uid):
    for tournament in ("paper", "knockout"):
        fixtures = bracket(tournament, size, seed, uid)
        assert len(fixtures) == size - 1
        used = [slot for fixture in fixtures for slot in fixture]
        assert sorted(used) == list(range(max(2 * size - 2, 0)))
        under = [{i} for i in range(size)]
        pairs = []
        for match, (first, second) in enumerate(fixtures):
            assert max(first, second) < size + match
            pairs += [frozenset((a, b)) for a in under[first] for b in under[second]]
            under.append(under[first] | under[second])
        assert sorted(map(sorted, pairs)) == [list(p) for p in combinations(range(size), 2)]
        depth = max(levels(size, fixtures), default=-1) + 1
        assert depth <= max(size - 1, 0)
        if tournament == "knockout":
            assert depth == math.ceil(math.log2(size))


def test_paper_brackets_are_uniform_and_depend_on_seed_and_place():
    counts: dict[tuple[int, int], int] = {}
    for seed in range(3000):
        first = bracket("paper", 3, seed, 0)[0]
        counts[first] = counts.get(first, 0) + 1
    assert len(counts) == 6
    chi_square = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001
    assert bracket("paper", 8, 1, 0) == bracket("paper", 8, 1, 0)
    assert bracket("paper", 8, 1, 0) != bracket("paper", 8, 2, 0)
    assert bracket("paper", 8, 1, 0) != bracket("paper", 8, 1, 1 << 48)


def test_all_asks_once_and_played_only_what_is_played():
    candidates = [branch(i, f"{i}") for i in range(6)]
    for tournament in ("paper", "knockout"):
        _, _, requests = run(contest(tournament, "all"), candidates, by_quality)
        rounds = [r for r in requests if isinstance(r, Judge)]
        assert [len(r.pairs) for r in rounds] == [15]
        _, matches, requests = run(contest(tournament, "played"), candidates, by_quality)
        rounds = [r for r in requests if isinstance(r, Judge)]
        assert sum(len(r.pairs) for r in rounds) == 5 == len(matches)
        assert len(rounds) <= 5
    _, _, requests = run(contest("knockout", "played"), candidates, by_quality)
    assert [len(r.pairs) for r in requests if isinstance(r, Judge)] == [3, 1, 1]


def test_auto_takes_one_round_of_few_and_rounds_of_many():
    def num_pairs(size, length, prompt_chars):
        candidates = [branch(i, f"{i} " + "x" * length) for i in range(size)]
        setup = contest("paper", "auto", prompt_chars=prompt_chars)
        _, _, requests = run(setup, candidates, by_quality)
        return [len(r.pairs) for r in requests if isinstance(r, Judge)]

    assert num_pairs(4, 4, 2000) == [6]  # rounds cost most: read the weights once
    # The head is kept between rounds, so its length does not ask for a single one.
    assert num_pairs(4, 100, 2000) == num_pairs(4, 100, 0) == [1, 1, 1]
    assert sum(num_pairs(16, 500, 100)) == 15  # long candidates: score no match in vain


def test_identical_candidates_are_not_judged_against_each_other():
    candidates = [branch(i, "5 same") for i in range(4)]
    winner, matches, requests = run(contest(), candidates, by_quality)
    assert winner == 0
    assert not [r for r in requests if isinstance(r, (Judge, Gate))]
    assert {(m.kind, m.is_tie, m.probability) for m in matches} == {("identical", True, 0.5)}
    # Two texts among five: one question, whoever meets whom.
    candidates = [branch(i, "1" if i % 2 else "2") for i in range(5)]
    for schedule in ("all", "played"):
        winner, _, requests = run(contest(schedule=schedule), candidates, by_quality)
        assert candidates[winner].inner == "2"
        assert [len(r.pairs) for r in requests if isinstance(r, Judge)] == [1]


def test_a_tie_goes_to_the_lower_branch_in_either_order():
    for seed in range(20):
        winner, (match,), _ = run(
            contest(seed=seed), [branch(0, "a"), branch(1, "b")], lambda *_: 0.0
        )
        assert (winner, match.winner, match.is_tie, match.probability) == (0, 0, True, 0.5)


COPIES = [branch(0, "1"), branch(1, "2"), branch(2, "1"), branch(3, "1")]


@pytest.mark.parametrize("schedule", ["all", "played", "auto"])
@pytest.mark.parametrize("tournament", TOURNAMENTS)
def test_votes_outweigh_a_verdict_that_is_less_sure(tournament, schedule):
    def winner(votes: float) -> str:
        setup = contest(tournament, schedule, votes=votes)
        return COPIES[run(setup, COPIES, by_quality)[0]].inner

    # One copy with log-odds of 1 against three: log 3 = 1.0986.
    assert winner(0.0) == "2"
    assert winner(0.9) == "2"
    assert winner(0.92) == "1"


def test_votes_stand_in_the_probability_of_a_match():
    for seed in range(8):
        _, matches, _ = run(contest(votes=2.0, seed=seed), COPIES, by_quality)
        for match in matches:
            sign = {("1", "2"): 1, ("2", "1"): -1}.get(
                (COPIES[match.first].inner, COPIES[match.second].inner), 0
            )
            assert match.probability == pytest.approx(sigmoid(sign * (2 * math.log(3) - 1)))


def test_only_sound_candidates_vote_and_generated_verdicts_stand():
    cut_off = [branch(0, "1"), branch(1, "2"), *(branch(i, "1", "length") for i in (2, 3, 4))]
    assert run(contest(votes=50.0), cut_off, by_quality)[0] == 1
    certain = contest(votes=50.0, mode="generate", tournament="knockout")
    winner, _, _ = run(certain, COPIES, lambda a, b: math.inf if a == "2" else -math.inf)
    assert winner == 1


def test_both_orders_make_the_verdict_antisymmetric():
    seen = set()
    for seed in range(20):
        _, (match,), requests = run(
            contest(seed=seed), [branch(0, "2"), branch(1, "1")], by_quality
        )
        (request,) = [r for r in requests if isinstance(r, Judge)]
        assert [(p.first, p.second, p.index) for p in request.pairs] == [("2", "1", 1)]
        expected = sigmoid(1.0) if match.first == 0 else sigmoid(-1.0)
        assert match.probability == expected
        assert match.winner == 0
        seen.add(match.first)
    assert seen == {0, 1}


def test_a_generated_verdict_keeps_the_order_of_presentation():
    orders = set()
    for seed in range(20):
        _, (match,), requests = run(
            contest(mode="generate", seed=seed),
            [branch(0, "2"), branch(1, "1")],
            lambda first, second: math.inf,
        )
        (pair,) = next(r for r in requests if isinstance(r, Judge)).pairs
        assert match.winner == match.first
        assert match.probability == 1.0
        orders.add((match.first, pair.first, pair.index))
    assert orders == {(0, "2", 1), (1, "1", 2)}


@pytest.mark.parametrize("schedule", ["all", "played", "auto"])
def test_the_gate_loses_the_first_outright_and_checks_the_second(schedule):
    pair = [branch(0, "9 wrong"), branch(1, "1 right")]
    outcomes = {}
    for seed in range(10):
        setup = contest(schedule=schedule, seed=seed, has_gate=True)
        winner, (match,), requests = run(setup, pair, by_quality, lambda text: "right" in text)
        assert (winner, match.kind) == (1, "gate")
        assert isinstance(requests[0], Gate)
        assert requests[0].reasonings == ("9 wrong", "1 right")
        assert requests[0].indices == (0, 1)
        assert not [r for r in requests if isinstance(r, Judge)]
        # Both fail: the first is checked first, so the second wins.
        winner, (match,), _ = run(setup, pair, by_quality, lambda text: False)
        assert (winner, match.kind) == (match.second, "gate")
        outcomes[match.first] = match.probability
        # Both pass: the judge decides.
        winner, (match,), _ = run(setup, pair, by_quality)
        assert (winner, match.kind) == (0, "judged")
    assert outcomes == {0: 0.0, 1: 0.0}


def test_the_gate_is_asked_once_and_about_distinct_well_formed_texts_only():
    candidates = [branch(0, "x", "eos"), branch(1, "2"), branch(2, "2"), branch(3, "1")]
    _, _, requests = run(contest(has_gate=True), candidates, by_quality)
    gates = [r for r in requests if isinstance(r, Gate)]
    assert [(g.reasonings, g.indices) for g in gates] == [(("2", "1"), (1, 3))]
    _, _, requests = run(contest(has_gate=True), candidates[:3], by_quality)
    assert not [r for r in requests if isinstance(r, (Gate, Judge))]  # nothing two could dispute


@pytest.mark.parametrize("tournament", TOURNAMENTS)
def test_a_malformed_candidate_loses_without_a_judge(tournament):
    candidates = [branch(0, "9", "eos"), branch(1, "8", "length"), branch(2, "0")]
    winner, matches, requests = run(contest(tournament), candidates, by_quality)
    assert winner == 2
    assert not [r for r in requests if isinstance(r, Judge)]
    assert {match.kind for match in matches} == {"malformed"}
    winner, matches, _ = run(contest(tournament), candidates[:2], by_quality)
    assert (winner, matches[0].is_tie) == (0, True)


def test_round_robin_counts_wins():
    beats = {("a", "b"), ("b", "c"), ("c", "a"), ("a", "d"), ("b", "d"), ("d", "c")}
    candidates = [branch(i, text) for i, text in enumerate("dcba")]
    odds = lambda first, second: 1.0 if (first, second) in beats else -1.0  # noqa: E731
    winner, matches, requests = run(contest("round_robin"), candidates, odds)
    assert candidates[winner].inner == "b"  # a and b both win twice: the lower index
    assert len(matches) == 6
    assert len([r for r in requests if isinstance(r, Judge)]) == 1


def test_sigmoid_of_any_log_odds():
    assert sigmoid(math.inf) == 1.0
    assert sigmoid(-math.inf) == 0.0
    assert sigmoid(0.0) == 0.5
    assert sigmoid(-1000.0) == 0.0
    for x in (0.1, 3.0, 30.0):
        assert sigmoid(x) + sigmoid(-x) == pytest.approx(1.0, abs=1e-15)
