"""The block pool with 10^5 blocks in use: fork, commit, free, and a step of every branch."""

from __future__ import annotations

import numpy as np
import pytest

from stagebeam.bindings._core import BlockPool

NUM_BLOCKS, BLOCK_SIZE, TRUNK = 110_000, 16, 256


@pytest.fixture(scope="module")
def full_pool() -> BlockPool:
    """10^5 blocks held by sequences of `TRUNK` tokens; room for a search beside them."""
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    for _ in range(100_000 * BLOCK_SIZE // TRUNK):
        seq = pool.create(TRUNK)
        assert seq is not None
        pool.append(seq, TRUNK)
    return pool


def test_fork_and_commit(full_pool: BlockPool, timed) -> None:
    """A stage of four branches: fork, a token each, the winner becomes the trunk."""
    trunk = full_pool.create(4 * TRUNK)
    assert trunk is not None
    full_pool.append(trunk, TRUNK - 3)

    def stage() -> None:
        children = full_pool.fork(trunk, 4, 64)
        assert children is not None
        full_pool.append_one(children)
        full_pool.commit(children[2], [children[0], children[1], children[3]])
        full_pool.release([children[2]])

    timed(stage)


def test_fork_of_64(full_pool: BlockPool, timed) -> None:
    trunk = full_pool.create(TRUNK)
    assert trunk is not None
    full_pool.append(trunk, TRUNK - 3)

    def fork() -> None:
        children = full_pool.fork(trunk, 64, 32)
        assert children is not None
        full_pool.release(children)

    timed(fork)


def test_step_of_64_branches(timed) -> None:
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    trunk = pool.create(TRUNK)
    assert trunk is not None
    pool.append(trunk, TRUNK)
    seqs = np.array(pool.fork(trunk, 64))

    def step() -> None:
        pool.append_one(seqs)
        for seq in seqs:
            pool.truncate(int(seq), TRUNK)

    timed(step)


def test_free_of_all(timed) -> None:
    """10^5 blocks taken and given back."""
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)

    def fill_and_free() -> None:
        seqs = []
        for _ in range(100):
            seq = pool.create(0)
            assert seq is not None
            pool.append(seq, 1000 * BLOCK_SIZE)
            seqs.append(seq)
        pool.release(seqs)

    timed(fill_and_free)
