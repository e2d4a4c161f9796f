"""The C++ sampler: kept sets against Hugging Face's processors, the choice, the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stagebeam.bindings import _core

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def hf_kept(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float):
    """The ids that HF's processors leave, in its order and in float64."""
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    processors = [TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k > 0 else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p > 0 else []
    for processor in processors:
        scores = processor(None, scores)
    return torch.isfinite(scores[0]).nonzero()[:, 0].tolist()


FILTERS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 5),
        "top_k": st.sampled_from([-1, 0, 1, 2, 5, 50, 10_000]),
        "top_p": st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.001, 1)),
    }
)


@given(FILTERS, st.integers(1, 400), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1, 8]))
def test_kept_ids_equal_hf(filters: dict, vocab_size: int, seed: int, scale: float):
    logits = np.random.default_rng(seed).normal(size=vocab_size, scale=scale).astype(np.float32)
    assert _core.kept_ids(logits, **filters).tolist() == hf_kept(logits, **filters)


@given(FILTERS, st.lists(st.integers(-4, 4), min_size=1, max_size=40))
def test_kept_ids_with_ties(filters: dict, steps: list[int]):
    logits = np.array(steps, dtype=np.float32)
    kept = _core.kept_ids(logits, **filters).tolist()
    by_hf = hf_kept(logits, **filters)
    # HF leaves the order of equal logits to its sort: as many of each value are kept, and they are
    # the lowest ids.
    assert sorted(logits[kept]) == sorted(logits[by_hf])
    for value in set(logits[kept].tolist()):
        ids = np.flatnonzero(logits == value).tolist()
        mine = [token for token in kept if logits[token] == value]
        assert mine == ids[: len(mine)]


def test_top_k_keeps_all_ties_and_top_p_the_lowest_ids():
    logits = np.array([1, 3, 2, 2, 3, 2], dtype=np.float32)
    assert _core.kept_ids(logits, **{**OFF, "top_k": 3}).tolist() == [1, 2, 3, 4, 5]
    assert _core.kept_ids(np.zeros(8), **{**OFF, "top_p": 0.3}).tolist() == [0, 1, 2]
    assert _core.kept_ids(logits, **{**OFF, "temperature": 0}).tolist() == [1]


@given(FILTERS, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_the_choice_is_gumbel_max_over_the_kept_ids(filters: dict, seed: int, uid: int, step: int):
    logits = np.random.default_rng(seed % 1000).normal(size=200, scale=3).astype(np.float32)
    token, logprob = _core.sample_row(logits, seed, uid, step, **filters)
    kept = _core.kept_ids(logits, **filters)
    noise = -np.log(-np.log(_core.uniforms(seed, step, uid, kept).astype(np.float64)))
    assert token == kept[np.argmax(logits[kept] / filters["temperature"] + noise)]
    wide = logits.astype(np.float64)
    assert logprob == pytest.approx(wide[token] - np.log(np.exp(wide).sum()), abs=1e-5)


def test_temperature_zero_is_the_first_maximum():
    logits = np.array([0, 5, 5, 1], dtype=np.float32)
    for step in range(20):
        assert _core.sample_row(logits, 1, 2, step, **{**OFF, "temperature": 0})[0] == 1


@pytest.mark.parametrize(
    "filters",
    [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}],
    ids=["none", "temperature", "top_k", "top_p", "min_p"],
)
def test_chi_square(filters: dict):
    filters = {**OFF, **filters}
    logits = np.random.default_rng(3).permutation(np.linspace(-2, 1, 12)).astype(np.float32)
    kept = hf_kept(logits, **filters)
    weights = np.exp(logits[kept].astype(np.float64) / filters["temperature"])
    num_draws = 20_000
    drawn = [_core.sample_row(logits, 7, 1 + i % 9, i, **filters)[0] for i in range(num_draws)]
    counts = np.bincount(drawn, minlength=12)
    assert counts.sum() == counts[kept].sum()
    expected = num_draws * weights / weights.sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = len(kept) - 1
    assert freedom >= 3
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_rows_without_an_answer_are_refused():
    for logits, words in [
        (np.zeros(0), "the row must be 1 to"),
        (np.full(3, -np.inf), "the largest logit must be finite"),
        (np.array([0, np.inf]), "the largest logit must be finite"),
        (np.zeros((2, 2)), r"logits must be one row, got shape \(2, 2\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            _core.sample_row(logits, 0, 0, 0, **OFF)
    for option, value in [("temperature", -1), ("top_k", -2), ("top_p", 0), ("min_p", 2)]:
        with pytest.raises(ValueError, match=f"{option} must be"):
            _core.sample_row(np.zeros(3), 0, 0, 0, **{**OFF, option: value})
