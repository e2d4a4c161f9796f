"""Philox in PyTorch: Random123's known answers, and the C++ core's words bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stagebeam.bindings import _core
from stagebeam.kernels.sample_step.philox import philox4x32, token_uniforms, vocab_uniforms

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORDS = [0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63), 0x1234567890ABCDEF]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words) -> None:
    got = philox4x32(torch.tensor(key)[:, None], torch.tensor(counter)[:, None])
    assert tuple(got[:, 0].tolist()) == words


def test_words_equal_the_cores() -> None:
    counters = torch.randint(0, 2**32, (4, 500))
    keys = torch.randint(0, 2**32, (2, 500))
    got = philox4x32(keys, counters)
    for i in range(500):
        low, high = keys[:, i].tolist()
        assert _core.philox4x32(high << 32 | low, tuple(counters[:, i].tolist())) == tuple(
            got[:, i].tolist()
        )


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 49, 1000])
def test_uniforms_equal_the_cores_bit_for_bit(vocab_size) -> None:
    rows = [(seed, uid, step) for seed in WORDS for uid in WORDS for step in (0, 1, 2**31 - 1)]
    seeds, uids, steps = (torch.tensor(column) for column in zip(*rows))
    got = vocab_uniforms(seeds, uids, steps.int(), vocab_size)
    ids = torch.randint(0, vocab_size, (len(rows), 7))
    some = token_uniforms(seeds, uids, steps.int(), ids)
    assert torch.equal(some, got.gather(1, ids))
    for r, (seed, uid, step) in enumerate(rows):
        words = seed % 2**64, step, uid % 2**64
        expected = _core.uniforms(*words, np.arange(vocab_size))
        assert got[r].numpy().tobytes() == expected.tobytes()
    assert float(got.min()) > 0
    assert float(got.max()) < 1


def test_uniforms_of_a_large_vocabulary() -> None:
    one, ids = torch.tensor([5]), torch.tensor([[0, 127_999, 128_255]])
    some = token_uniforms(one, one, one.int(), ids)
    assert torch.equal(some, vocab_uniforms(one, one, one.int(), 128_256).gather(1, ids))
    assert some[0].numpy().tobytes() == _core.uniforms(5, 5, 5, ids[0].numpy()).tobytes()
