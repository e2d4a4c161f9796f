"""Choosing a token a row: the filters, then Gumbel-max with counter-based uniforms.

Rows do not see each other: a row's token is the same in any batch. On a GPU (and on the meta
device) the work has fixed shapes and sorts the vocabulary; on a CPU, where looking at a value costs
nothing, rows that need less get less, with the same result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stagebeam.kernels.sample_step.philox import token_uniforms, vocab_uniforms

FIRST_WIDTH = 128  # candidates tried first for rows that only top_p filters
CHUNK = 1 << 16  # logits at a time


class Rows(NamedTuple):
    """The sampling parameters of some rows, as sample_step takes them."""

    seeds: Tensor
    uids: Tensor
    steps: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def take(self, index: Tensor) -> Rows:
        return Rows(*(x[index] for x in self))


def choose_tokens(logits: Tensor, rows: Rows) -> Tensor:
    """Token ids [R] int64 for logits [R, V]."""
    return (choose_on_host if logits.device.type == "cpu" else choose_at_fixed_shapes)(logits, rows)


def choose_at_fixed_shapes(logits: Tensor, rows: Rows) -> Tensor:
    """Every row by way of the sorted vocabulary; no value is looked at."""
    is_sampled = rows.temperature > 0
    rows = rows._replace(temperature=torch.where(is_sampled, rows.temperature, 1))
    values, ids = logits.sort(dim=1, descending=True, stable=True)
    uniforms = vocab_uniforms(*rows[:3], logits.shape[1]).gather(1, ids)
    kept = _kept(values, _mass(logits, rows), rows)
    return torch.where(is_sampled, _pick(values, ids, kept, uniforms, rows), logits.argmax(1))


def choose_on_host(logits: Tensor, rows: Rows) -> Tensor:
    """The same tokens; rows that need no order, or only a little of it, do no more."""
    is_sampled = rows.temperature > 0
    has_top_k = (rows.top_k > 0) & (rows.top_k < logits.shape[1])
    is_filtered = is_sampled & (has_top_k | (rows.top_p < 1))
    tokens = torch.empty(len(logits), dtype=torch.int64)
    for mask, choose in (
        (~is_sampled, _greedy),
        (is_filtered, _filtered),
        (is_sampled & ~is_filtered, _unfiltered),
    ):
        own = mask.nonzero().squeeze(1)
        if len(own) == len(logits):
            return choose(logits, rows)
        if len(own):
            tokens[own] = choose(logits[own], rows.take(own))
    return tokens


def _greedy(logits: Tensor, rows: Rows) -> Tensor:
    return logits.argmax(1)


def _unfiltered(logits: Tensor, rows: Rows) -> Tensor:
    """Rows without top_k and top_p need no order; a few rows at a time stay in a core's cache."""
    tokens = []
    for own in torch.arange(len(logits)).split(max(1, CHUNK // logits.shape[1])):
        part, values = rows.take(own), logits[own]
        scores = _scores(values, vocab_uniforms(*part[:3], logits.shape[1]), part)
        if bool((part.min_p > 0).any()):
            weights = _weights(values, values.amax(1, keepdim=True), part)
            scores.masked_fill_(weights < part.min_p.unsqueeze(1), -torch.inf)
        tokens.append(scores.argmax(1))
    return torch.cat(tokens)


def _filtered(logits: Tensor, rows: Rows) -> Tensor:
    """Rows with top_k or top_p: only as many of the largest logits as surely hold all kept ids."""
    vocab_size = logits.shape[1]
    has_top_k = rows.top_k > 0
    mass = logits.new_zeros(len(logits), 1) if bool(has_top_k.all()) else _mass(logits, rows)
    width = int(rows.top_k.max()) + 1 if bool(has_top_k.all()) else FIRST_WIDTH
    while width < vocab_size:
        values, ids = logits.topk(width, dim=1)
        # Ids tied with the last candidate may be missing: every kept one must be above it.
        is_above = values > values[:, -1:]
        above_mass = (_weights(values, values[:, :1], rows) * is_above).sum(1, keepdim=True)
        kth = values.gather(1, rows.top_k.clamp(1, width).long().unsqueeze(1) - 1)
        holds = torch.where(
            has_top_k.unsqueeze(1),
            kth > values[:, -1:],
            above_mass > rows.top_p.unsqueeze(1) * mass,
        )
        if bool(holds.all()):
            ids, order = ids.sort(dim=1)
            values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
            ids = ids.gather(1, order)
            uniforms = token_uniforms(*rows[:3], ids)
            break
        width *= 4
    else:
        values, ids = logits.sort(dim=1, descending=True, stable=True)
        uniforms = vocab_uniforms(*rows[:3], vocab_size).gather(1, ids)
    return _pick(values, ids, _kept(values, mass, rows), uniforms, rows)


def _kept(values: Tensor, mass: Tensor, rows: Rows) -> Tensor:
    """Which candidates pass the filters: values [R, W] sorted down, equal ones by id -> bool.

    mass: [R, 1] float64, the sum of the whole row's weights; used by rows without top_k
    """
    top_k, top_p, min_p = (x.unsqueeze(1) for x in (rows.top_k, rows.top_p, rows.min_p))
    kth = values.gather(1, top_k.clamp(1, values.shape[1]).long() - 1)
    kept = (values >= kth) | (top_k <= 0)
    weights = _weights(values, values[:, :1], rows) * kept
    mass_to_here = weights.cumsum(1)
    mass = torch.where(top_k > 0, mass_to_here[:, -1:], mass)
    kept &= (mass_to_here - weights < top_p * mass) | (top_p >= 1)
    kept &= weights >= min_p
    kept[:, 0] = True
    return kept


def _weights(values: Tensor, largest: Tensor, rows: Rows) -> Tensor:
    """Probabilities relative to the most likely id's, float64."""
    return ((values.double() - largest) / rows.temperature.double().unsqueeze(1)).exp_()


def _mass(logits: Tensor, rows: Rows) -> Tensor:
    """The sum of a row's weights, [R, 1] float64 (its terms in the logits' precision)."""
    scaled = (logits - logits.amax(1, keepdim=True)) / rows.temperature.unsqueeze(1)
    return scaled.exp_().sum(1, keepdim=True, dtype=torch.float64)


def _pick(values: Tensor, ids: Tensor, kept: Tensor, uniforms: Tensor, rows: Rows) -> Tensor:
    """Gumbel-max over the kept candidates, ties to the lowest id: [R]."""
    scores = _scores(values, uniforms, rows).masked_fill_(~kept, -torch.inf)
    best = scores.amax(1, keepdim=True)
    return torch.where(scores == best, ids, torch.iinfo(ids.dtype).max).amin(1)


def _scores(values: Tensor, uniforms: Tensor, rows: Rows) -> Tensor:
    return values / rows.temperature.unsqueeze(1) - uniforms.log().neg_().log_()
