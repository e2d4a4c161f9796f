"""The tag automaton, the decode step and judge rounds, on the bundled checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from stagebeam.benchmarks.speed.bare import BareDecode, prefill_seconds
from stagebeam.benchmarks.suites.timing import Time
from stagebeam.engine.engine import Engine
from stagebeam.engine.tag_automaton import TagBank

VOCABULARY, NUM_STEPS = 131_072, 40


def test_automaton_build(engine: Engine, timed: Time) -> None:
    """Four closing tags over a vocabulary of 131,072 tokens."""
    own = engine.token_bytes
    pieces = [own[i % len(own)] for i in range(VOCABULARY)]
    tags = sorted(engine.plan.close_tags)
    timed(lambda: TagBank(pieces).register(tags), rounds=5)


def test_automaton_step(engine: Engine, timed: Time) -> None:
    """A table look-up for each of 64 branches."""
    bank = TagBank(engine.token_bytes)
    bank.register(sorted(engine.plan.close_tags))
    table = bank.next_state.numpy()
    rng = np.random.default_rng(0)
    states = rng.integers(0, len(table), 64)
    tokens = rng.integers(0, table.shape[1], 64)
    timed(lambda: table[states, tokens])


@pytest.mark.parametrize("rows", [1, 4, 16, 64])
def test_decode_step(engine: Engine, rows: int, timed: Time) -> None:
    decode = BareDecode(engine, rows=rows, trunk_tokens=256, max_steps=NUM_STEPS + 4)
    try:
        timed(decode.step, rounds=NUM_STEPS)
    finally:
        decode.close()


def test_prefill(engine: Engine, timed: Time) -> None:
    timed(lambda: prefill_seconds(engine, num_tokens=256, num_repeats=1), rounds=5)


@pytest.mark.parametrize("num_pairs", [1, 6])
def test_judge_round(engine: Engine, num_pairs: int, timed: Time) -> None:
    """Pairs of candidates of 40 words, judged in both orders by one forward pass."""
    texts = [" ".join(f"there is {j} red {i}" for j in range(10)) for i in range(4)]
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]][:num_pairs]
    criterion = engine.plan.stages[0].criterion
    timed(lambda: engine.judge("What is there?", None, pairs, criterion), rounds=10)
