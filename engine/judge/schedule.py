"""Score every match that may be played at once, or only those played: which costs less.

Costs are in tokens of prefill. The first judge round costs
    ROUND_TOKENS + the prompt's head + len(first) for each distinct first + len(second) for each row,
a row being a pair in one order; a later round keeps the head and the firsts that it has met, and pays
`ROUND_TOKENS`, which stands for reading the weights once more. A generated verdict adds
`VERDICT_TOKENS` a row, and as many more reads of the weights a round. Lengths are the candidates' own
token counts; the head's is estimated at their characters a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROUND_TOKENS = 32
VERDICT_TOKENS = 64

Rows = Sequence[tuple[int, int]]  # (first, second) candidates of one round, orders included


def round_cost(
    rows: Rows, lengths: Mapping[int, int], head_tokens: float, is_generated: bool
) -> float:
    """The cost of judging `rows` in one round; nothing where there are none."""
    if not rows:
        return 0.0
    firsts = {first for first, _ in rows}
    cost = ROUND_TOKENS + head_tokens
    cost += sum(lengths[first] for first in firsts) + sum(lengths[second] for _, second in rows)
    if is_generated:
        cost += VERDICT_TOKENS * (ROUND_TOKENS + len(rows))
    return cost


def expected_cost(
    rounds: Sequence[Sequence[Sequence[tuple[int, int] | None]]],
    lengths: Mapping[int, int],
    head_tokens: float,
    num_orders: int,
    is_generated: bool,
) -> float:
    """The cost of judging only what is played, each way that a match can turn out equally likely.

    rounds: for each round its matches; for each match the pairs that may meet in it, None where
            the pair needs no judge
    """
    cost, met = 0.0, set[int]()
    for matches in rounds:
        asked = [[pair for pair in match if pair is not None] for match in matches]
        if not any(asked):
            continue
        cost += ROUND_TOKENS + (0 if met else head_tokens)
        cost += VERDICT_TOKENS * ROUND_TOKENS if is_generated else 0
        firsts: set[int] = set()
        for match, pairs in zip(matches, asked, strict=True):
            rows = [row for a, b in pairs for row in ((a, b), (b, a))[:num_orders]]
            row_cost = sum(lengths[b] + (0 if a in met else lengths[a]) for a, b in rows)
            row_cost += VERDICT_TOKENS * len(rows) if is_generated else 0
            cost += row_cost / len(match)
            firsts |= {first for first, _ in rows}
        met |= firsts
    return cost
