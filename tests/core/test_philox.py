"""Philox 4x32-10 and the uniforms, against Random123's vectors and a Python transcription."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.bindings import _core

MASK = 2**32 - 1
WORD = st.integers(0, MASK)
WIDE = st.integers(0, 2**64 - 1)


def philox(key: int, counter: tuple[int, ...]) -> tuple[int, ...]:
    """Figure 4 of Salmon et al., over Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, key >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & MASK, p0 >> 32 ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def uniform(seed: int, step: int, uid: int, token: int) -> np.float32:
    word = philox(seed, (step, token // 4, uid & MASK, uid >> 32))[token % 4]
    return np.float32(((word >> 9) + 0.5) * 2.0**-23)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, "00000000 00000000 00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, "ffffffff ffffffff ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            "243f6a88 85a308d3 13198a2e 03707344",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(key: int, counter: str, words: str):
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    expected = tuple(int(word, 16) for word in words.split())
    assert _core.philox4x32(key, (c0, c1, c2, c3)) == expected == philox(key, (c0, c1, c2, c3))


@given(WIDE, st.tuples(WORD, WORD, WORD, WORD))
def test_philox_equals_the_transcription(key: int, counter: tuple[int, int, int, int]):
    assert _core.philox4x32(key, counter) == philox(key, counter)


@given(WIDE, WORD, WIDE, st.lists(WORD, max_size=20))
def test_uniforms_are_bit_equal(seed: int, step: int, uid: int, tokens: list[int]):
    expected = np.array([uniform(seed, step, uid, token) for token in tokens], dtype=np.float32)
    got = _core.uniforms(seed, step, uid, tokens)
    assert got.dtype == np.float32
    assert got.view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def test_a_whole_vocabulary_of_uniforms():
    got = _core.uniforms(1, 2, 3, np.arange(128_256))
    assert 0 < got.min() < 1e-4
    assert 1 - 1e-4 < got.max() < 1
    assert abs(got.mean() - 0.5) < 5e-3
    assert got[77] == uniform(1, 2, 3, 77)


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"seed must be an int in 0 .. 2\*\*64 - 1, got -1"):
        _core.uniforms(-1, 0, 0, [0])
    with pytest.raises(
        ValueError, match=r"step must be an int in 0 .. 2\*\*32 - 1, got 4294967296"
    ):
        _core.uniforms(0, 2**32, 0, [0])
    with pytest.raises(ValueError, match="uid must be an int"):
        _core.uniforms(0, 0, 1.5, [0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"token_ids must be in .* got -1"):
        _core.uniforms(0, 0, 0, [3, -1])
    with pytest.raises(ValueError, match="key must be an int"):
        _core.philox4x32(2**64, (0, 0, 0, 0))
