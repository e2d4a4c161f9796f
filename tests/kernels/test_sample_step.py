"""sample_step: the exact distribution, Hugging Face's kept sets, tags and finish reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sample_rows import mixed_rows, rows
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stagebeam.bindings import _core
from stagebeam.kernels.sample_step import FINISH, choice

OP = "sample_step"
FILTERS = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_k 1": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 1000},
    "top_p": {"top_p": 0.8},
    "top_p near 1": {"top_p": 0.999},
    "tiny top_p": {"top_p": 1e-6},
    "min_p": {"min_p": 0.1},
    "min_p 1": {"min_p": 1.0},
    "published": {"temperature": 0.6, "top_k": 50, "top_p": 0.9},
    "all": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
}


def hf_scores(logits: Tensor, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> Tensor:
    """Hugging Face's processors in float64: logits [R, V] -> scores, -inf where removed."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(np.float32(top_p))))
    if min_p > 0:
        warpers.append(MinPLogitsWarper(float(np.float32(min_p))))
    return warpers(torch.empty(0), logits.double())


def gumbel_scores(scores: Tensor, arguments: dict[str, Tensor]) -> Tensor:
    """The oracle's choice scores, with the C++ generator's uniforms."""
    ids = np.arange(scores.shape[1])
    uniforms = [
        _core.uniforms(int(seed) % 2**64, int(step), int(uid) % 2**64, ids)
        for seed, uid, step in zip(*(arguments[name] for name in ("seeds", "uids", "steps")))
    ]
    return scores - (-torch.from_numpy(np.stack(uniforms)).double().log()).log()


def assert_chosen(tokens: Tensor, scores: Tensor) -> None:
    """The tokens have the largest scores, except where the two best differ by a rounding."""
    best = scores.topk(2, dim=1).values
    is_clear = best[:, 0] - best[:, 1] > 1e-4
    assert is_clear.float().mean() > 0.99
    assert torch.equal(tokens[is_clear], scores.argmax(1)[is_clear])


def chi_square_limit(degrees: int) -> float:
    """The chi-square value passed once in 100,000 draws (Wilson and Hilferty)."""
    share = 2 / (9 * degrees)
    return degrees * (1 - share + 4.265 * math.sqrt(share)) ** 3


@pytest.mark.parametrize("varied", ["seeds", "uids", "steps"])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_the_distribution_is_exact(op, filters, varied) -> None:
    num_rows = getattr(op, "num_rows", 20_000)
    logits = torch.randn(1, 24) * 1.5
    arguments = rows(logits.expand(num_rows, -1).contiguous(), uids=torch.zeros(num_rows).long())
    arguments["seeds"] = arguments["seeds"].long()
    arguments[varied] = torch.arange(num_rows, dtype=arguments[varied].dtype)
    for name, value in filters.items():
        arguments[name] = torch.full_like(arguments[name], value)
    counts = op(**arguments)[0].bincount(minlength=24).double()
    expected = hf_scores(logits, **filters)[0].softmax(0) * num_rows
    assert counts[expected == 0].sum() == 0, "a removed id was sampled"
    large = expected >= 5
    observed = torch.cat((counts[large], counts[~large].sum()[None]))
    wanted = torch.cat((expected[large], expected[~large].sum()[None]))
    assert observed[wanted == 0].sum() == 0
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    if len(wanted) > 1:
        statistic = ((observed - wanted) ** 2 / wanted).sum()
        assert statistic < chi_square_limit(len(wanted) - 1)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("vocab_size", [3, 101, 1000])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_tokens_are_gumbel_max_over_what_hugging_face_keeps(op, filters, vocab_size, scale) -> None:
    logits = torch.randn(60, vocab_size) * scale
    seeds = torch.randint(-(2**63), 2**63 - 1, (60,))
    uids = torch.randint(-(2**63), 2**63 - 1, (60,))
    steps = torch.randint(0, 2**31 - 1, (60,))
    arguments = rows(logits, seeds=seeds, uids=uids, steps=steps, **filters)
    tokens, logprobs, _, _ = op(**arguments)
    assert_chosen(tokens, gumbel_scores(hf_scores(logits, **filters), arguments))
    exact = logits.double().log_softmax(1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-5)


def kept_by_sampling(op: Callable[..., Any], logits: list[float], **filters: Any) -> set[int]:
    """All ids drawn in many draws from a small, flat vocabulary: what the filters keep."""
    many = torch.tensor([logits]).expand(3000, -1).contiguous()
    return set(op(**rows(many, **filters))[0].tolist())


@pytest.mark.parametrize(
    ("logits", "filters", "kept"),
    [
        ([2.0, 1.0, 1.0, 1.0, 0.0], {"top_k": 2}, {0, 1, 2, 3}),
        ([1.0, 2.0, 1.0, 0.0, 1.0], {"top_k": 2, "temperature": 3.0}, {0, 1, 2, 4}),
        ([0.0, 1.0, 1.0, 1.0, 1.0], {"top_k": 4, "top_p": 0.5}, {1, 2}),
        ([1.0] * 8, {"top_p": 0.5}, {0, 1, 2, 3}),
        ([1.0] * 8, {"top_p": 0.51}, {0, 1, 2, 3, 4}),
        ([1.0] * 8, {"top_k": 1}, set(range(8))),
        ([1.0] * 8, {"top_k": 1, "top_p": 0.25}, {0, 1}),
        ([0.0, 0.0, 9.0], {"top_p": 0.5}, {2}),
        ([1.0, 1.0, 1.0], {"top_p": 1e-9}, {0}),
        ([1.0, 0.0, 1.0, 0.0], {"min_p": 0.5}, {0, 2}),
        ([1.0, 0.0, 1.0, 0.0], {"min_p": 0.3}, {0, 1, 2, 3}),
        ([1.0, 0.0, 1.0, 0.0], {"min_p": 1.0}, {0, 2}),
        ([1.0, 0.0, 1.0, 0.0], {"min_p": 1.0, "top_k": 3}, {0, 2}),
        ([1.0, 0.0, 1.0, 0.0], {"top_k": -1}, {0, 1, 2, 3}),
        ([1.0, -math.inf, 0.5, -math.inf], {}, {0, 2}),
        ([1.0, -math.inf, 0.5, -math.inf], {"top_k": 3}, {0, 2}),
        ([1.0, -math.inf, 0.5, -math.inf], {"top_p": 0.999}, {0, 2}),
    ],
)
def test_ties_at_the_edges(op, logits, filters, kept) -> None:
    assert kept_by_sampling(op, logits, **filters) == kept
    twin = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **filters}
    assert set(_core.kept_ids(np.float32(logits), *twin.values())) == kept


@pytest.mark.parametrize("levels", [2, 7, 40])
@pytest.mark.parametrize("filters", [{"top_k": 50}, {"top_p": 0.9}, {"top_k": 300, "top_p": 0.7}])
def test_wide_ties_over_a_large_vocabulary(op, filters, levels) -> None:
    """More equal logits than any candidate list holds; the C++ twin has the same rule for ties."""
    logits = torch.randint(0, levels, (40, 3000)) * (8.0 / levels)
    arguments = rows(logits, temperature=0.6, **filters)
    twin = {"temperature": 0.6, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **filters}
    scores = torch.full(logits.shape, -torch.inf, dtype=torch.float64)
    for r, row in enumerate(logits):
        options = *(twin[name] for name in ("temperature", "top_k")), np.float32(twin["top_p"])
        kept = torch.from_numpy(np.array(_core.kept_ids(row.numpy(), *options, 0.0))).long()
        scores[r, kept] = row[kept].double() / 0.6
    assert_chosen(op(**arguments)[0], gumbel_scores(scores, arguments))


def test_the_cpp_sampler_chooses_the_same(op) -> None:
    arguments = mixed_rows(200, 500)
    tokens, logprobs, _, _ = op(**arguments)
    names = ("seeds", "uids", "steps", "temperature", "top_k", "top_p", "min_p")
    same = 0
    for r, row in enumerate(arguments["logits"]):
        seed, uid, step, temperature, *filters = (arguments[name][r].item() for name in names)
        words = seed % 2**64, uid % 2**64, step
        token, logprob = _core.sample_row(row.numpy(), *words, temperature, *filters)
        same += token == tokens[r]
        if token == tokens[r]:
            assert abs(logprob - logprobs[r]) < 2e-5
    assert same >= 199


def test_rows_do_not_see_each_other(op) -> None:
    arguments = mixed_rows(48, 700)
    shared = {"next_state", "accept_tag", "eos_ids"}

    def take(index: Tensor) -> dict[str, Tensor]:
        return {k: v if k in shared else v[index] for k, v in arguments.items()}

    tokens, logprobs, _, _ = op(**arguments)
    order = torch.randperm(48)
    assert torch.equal(op(**take(order))[0], tokens[order])
    for size in (1, 2, 5, 16):
        parts = [op(**take(index)) for index in torch.arange(48).split(size)]
        assert torch.equal(torch.cat([part[0] for part in parts]), tokens)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), logprobs)
    twice = torch.tensor([3, 3, 3])
    assert len(set(op(**take(twice))[0].tolist())) == 1


def test_greedy_is_argmax_with_ties_to_the_lowest_id(op) -> None:
    logits = torch.randint(0, 4, (64, 33)).float()
    arguments = rows(logits, temperature=0.0, top_k=3, top_p=0.2, min_p=0.5)
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert op(**arguments)[0].tolist() == expected
    arguments["temperature"][::2] = 1.0
    assert op(**arguments)[0][1::2].tolist() == expected[1::2]


@pytest.mark.parametrize("vocab_size", [5, 129, 1000, 2500])
def test_the_references_two_ways_agree(vocab_size) -> None:
    arguments = mixed_rows(64, vocab_size)
    arguments["logits"][::4] = arguments["logits"][::4].round()
    drawn = choice.Rows(*(arguments[name] for name in choice.Rows._fields))
    on_host = choice.choose_on_host(arguments["logits"], drawn)
    assert torch.equal(on_host, choice.choose_at_fixed_shapes(arguments["logits"], drawn))


def one_hot(tokens: list[int], vocab_size: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocab_size).float() * 50


def test_states_follow_the_table(op) -> None:
    num_states, vocab_size, num_rows = 23, 40, 16
    next_state = torch.randint(0, num_states, (num_states, vocab_size), dtype=torch.int16)
    states = torch.randint(0, num_states, (num_rows,), dtype=torch.int32)
    expected = states.tolist()
    accept_tag = torch.full((num_states,), -1, dtype=torch.int32)
    for _ in range(20):
        logits = torch.randn(num_rows, vocab_size)
        arguments = rows(logits, next_state=next_state, accept_tag=accept_tag, states=states)
        tokens, _, states, finish = op(**arguments)
        expected = [int(next_state[s, t]) for s, t in zip(expected, tokens.tolist())]
        assert states.dtype == torch.int32
        assert states.tolist() == expected
        assert finish.tolist() == [0] * num_rows


def test_finish_reasons_and_their_order(op) -> None:
    eos, plain, closes, wrong, both = 0, 1, 2, 3, 4  # token ids; `both` is eos and completes tag 62
    next_state = torch.tensor([[0, 0, 1, 2, 3]], dtype=torch.int16).repeat(4, 1)
    next_state[1:] = torch.arange(1, 4, dtype=torch.int16)[:, None]  # accept states absorb
    accept_tag = torch.tensor([-1, 5, 0, 62], dtype=torch.int32)
    goal, last, top = 1 << 5, 1 << 62, -1
    table = [  # token, state, goal mask, ignore_eos, steps, max_tokens -> reason
        (plain, 0, goal, False, 0, 9, "running"),
        (plain, 0, goal, False, 7, 9, "running"),
        (plain, 0, goal, False, 8, 9, "length"),
        (plain, 0, goal, False, 20, 9, "length"),
        (plain, 0, 0, False, 0, 1, "length"),
        (closes, 0, goal, False, 0, 9, "tag"),
        (closes, 0, goal, False, 8, 9, "tag"),
        (closes, 0, 0, False, 0, 9, "wrong_tag"),
        (closes, 0, last, False, 8, 9, "wrong_tag"),
        (wrong, 0, goal, False, 0, 9, "wrong_tag"),
        (wrong, 0, 1, False, 0, 9, "tag"),
        (wrong, 0, top, False, 0, 9, "tag"),
        (plain, 1, goal, False, 0, 9, "tag"),
        (eos, 0, goal, False, 0, 9, "eos"),
        (eos, 0, goal, False, 8, 9, "eos"),
        (eos, 1, goal, False, 8, 9, "eos"),
        (eos, 0, goal, True, 0, 9, "running"),
        (eos, 0, goal, True, 8, 9, "length"),
        (both, 0, last, False, 8, 9, "eos"),
        (both, 0, last, True, 8, 9, "tag"),
        (both, 0, goal, True, 0, 9, "wrong_tag"),
    ]
    tokens, states, masks, ignore, steps, most, reasons = map(list, zip(*table))
    arguments = rows(
        one_hot(tokens, 5),
        temperature=0.0,
        next_state=next_state,
        accept_tag=accept_tag,
        states=states,
        goal_masks=torch.tensor(masks),
        eos_ids=torch.tensor([eos, both]),
        ignore_eos=torch.tensor(ignore),
        steps=steps,
        max_tokens=most,
    )
    got_tokens, _, _, finish = op(**arguments)
    assert got_tokens.tolist() == tokens
    assert finish.dtype == torch.int8
    assert [FINISH[code] for code in finish.tolist()] == reasons


def test_an_empty_batch_and_one_token(op) -> None:
    shapes = [x.shape for x in op(**rows(torch.empty(0, 8)))]
    assert shapes == [(0,)] * 4
    tokens, logprobs, _, _ = op(**rows(torch.randn(3, 1)))
    assert tokens.tolist() == [0, 0, 0]
    assert logprobs.tolist() == [0.0, 0.0, 0.0]


def test_inputs_are_not_written(op) -> None:
    arguments = mixed_rows(16, 300)
    before = {name: value.clone() for name, value in arguments.items()}
    op(**arguments)
    assert all(torch.equal(arguments[name], before[name]) for name in before)


def test_a_table_of_another_vocabulary_is_refused(op) -> None:
    wrong = torch.zeros(1, 9, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"next_state: expected \[S, V\] with V=8 \(from logits\)"):
        op(**rows(torch.randn(2, 8), next_state=wrong))
