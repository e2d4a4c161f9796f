"""What a judge round may begin with: the earlier prompt that starts most alike and saw the same."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.bindings._core import BlockPool
from stagebeam.engine.memory.kept_prompts import KeptPrompt, KeptPrompts, shared_tokens

BLOCK_SIZE = 4


def filled(pool: BlockPool, token_ids: Sequence[int]) -> int:
    seq = pool.create(len(token_ids) + 8)
    assert seq is not None
    pool.append(seq, len(token_ids))
    return seq


def test_whole_blocks_are_shared_and_never_the_last_token() -> None:
    tokens = tuple(range(12))
    assert shared_tokens(tokens, tokens, BLOCK_SIZE) == 8
    assert shared_tokens(tokens, (*tokens, 99), BLOCK_SIZE) == 12
    assert shared_tokens(tokens, (*tokens[:11], 99, 98), BLOCK_SIZE) == 8
    assert shared_tokens(tokens, (99, *tokens[1:]), BLOCK_SIZE) == 0
    assert shared_tokens(tokens[:6], tokens, BLOCK_SIZE) == 4
    assert shared_tokens((), tokens, BLOCK_SIZE) == shared_tokens(tokens, (), BLOCK_SIZE) == 0


def test_the_longest_start_with_the_same_image_is_taken_and_all_comes_back() -> None:
    pool = BlockPool(64, BLOCK_SIZE)
    kept = KeptPrompts(pool)
    short, long, text = (*range(8), 50, 51), tuple(range(20)), tuple(range(24))
    kept.keep(
        1,
        [
            KeptPrompt(short, 2, filled(pool, short)),
            KeptPrompt(long, 2, filled(pool, long)),
            KeptPrompt(text, None, filled(pool, text)),
        ],
    )
    assert pool.num_reserved == 0
    num_shared, seq = kept.longest_start(1, tuple(range(30)), 2)
    assert (num_shared, seq) == (20, kept.seqs(1)[1])
    assert kept.longest_start(1, tuple(range(30)), None)[0] == 24
    assert kept.longest_start(1, tuple(range(30)), 3)[0] == 0
    assert kept.longest_start(2, tuple(range(30)), 2)[0] == 0
    assert kept.drop_all()
    assert not kept.drop_all()
    assert pool.num_free == pool.num_blocks
