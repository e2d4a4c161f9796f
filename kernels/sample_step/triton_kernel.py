"""Triton sample_step; the package's docstring is the contract. One launch, no sort.

A program takes a row, a tile of the vocabulary at a time. The last logit that top_k keeps, and the
last that top_p keeps, are found by bisection between two logits of the row: each pass over the row
moves one end to the next logit inside, so it ends at a logit, exactly.
Probability is counted in whole shares of 2^-43, so that no order of addition changes a sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_launch import INTERPRETED, launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable

MAX_VOCAB = 1 << 19  # a sum of as many whole shares fits in 63 bits
MAX_BLOCK_V = 8192  # logits of a row at a time
# The interpreter pays for tiles, not for elements: there rows share a program, on a device never.
ELEMENTS = 1 << 16 if INTERPRETED else 0
WHOLE = tl.constexpr(2.0**43)  # shares of the most likely id
TAG, EOS, LENGTH, WRONG_TAG = (tl.constexpr(code) for code in (1, 2, 3, 4))  # codes of FINISH


@triton.jit
def load_logits(row_ptrs, start, vocab_size, BLOCK_V: tl.constexpr):
    """Logits start .. start + BLOCK_V of some rows, [R, BLOCK_V] float32, -inf past the end."""
    ids = (start + tl.arange(0, BLOCK_V))[None, :]
    values = tl.load(row_ptrs[:, None] + ids, mask=ids < vocab_size, other=float("-inf"))
    return values.to(tl.float32)


@triton.jit
def largest_of(values, start, vocab_size, BLOCK_V: tl.constexpr):
    """Each row's largest value and its lowest id, of ids start .. start + BLOCK_V."""
    ids = (start + tl.arange(0, BLOCK_V))[None, :]
    top = tl.max(values, axis=1)
    return top, tl.min(tl.where(values == top[:, None], ids, vocab_size), axis=1)


@triton.jit
def shares(values, largest, temperature):
    """Probabilities relative to the most likely id's, in whole shares."""
    relative = (values - largest[:, None]) / temperature[:, None]
    return (tl.exp(relative) * WHOLE).to(tl.int64)


@triton.jit
def amount_from(values, least, largest, temperature, BY_SHARE: tl.constexpr):
    """How many ids (or how many shares) a row have logits of at least `least`: [R] int64."""
    is_over = values >= least[:, None]
    if BY_SHARE:
        amounts = tl.where(is_over, shares(values, largest, temperature), 0)
    else:
        amounts = is_over.to(tl.int64)
    return tl.sum(amounts, axis=1)


@triton.jit
def find_last(
    row_ptrs,
    vocab_size,
    low,
    high,
    target,
    largest,
    temperature,
    BY_SHARE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The largest logit that reaches `target` together with all larger ones, and their amount.

    low, high: [R] logits of the row around it (equal where nothing is sought)
    """
    above = tl.zeros_like(target)
    while tl.max((low < high).to(tl.int32), axis=0) > 0:
        middle = tl.minimum(low * 0.5 + high * 0.5, high)
        middle = tl.where(middle > low, middle, high)
        amount = tl.zeros_like(target)
        next_over = high
        next_under = low
        for start in range(0, vocab_size, BLOCK_V):
            values = load_logits(row_ptrs, start, vocab_size, BLOCK_V)
            amount += amount_from(values, middle, largest, temperature, BY_SHARE)
            is_over = values >= middle[:, None]
            over = tl.where(is_over, values, float("inf"))
            next_over = tl.minimum(next_over, tl.min(over, axis=1))
            under = tl.where(is_over, float("-inf"), values)
            next_under = tl.maximum(next_under, tl.max(under, axis=1))
        is_open = low < high
        is_reached = amount >= target
        low = tl.where(is_open & is_reached, next_over, low)
        high = tl.where(is_open & ~is_reached, next_under, high)
        above = tl.where(is_open & ~is_reached, amount, above)
    return low, above


@triton.jit
def uniforms(seeds, uids, steps, start, BLOCK_V: tl.constexpr):
    """Philox 4x32-10 for ids start .. start + BLOCK_V, [R, BLOCK_V]: odd multiples of 2^-24."""
    quads = (start // 4 + tl.arange(0, BLOCK_V // 4)).to(tl.uint32)[None, :]
    zeros = tl.zeros_like(quads)
    counter0 = steps.to(tl.uint32)[:, None] + zeros
    counter1 = quads + tl.zeros_like(counter0)
    counter2 = uids.to(tl.uint32)[:, None] + zeros
    counter3 = (uids >> 32).to(tl.uint32)[:, None] + zeros
    key0 = seeds.to(tl.uint32)[:, None] + zeros
    key1 = (seeds >> 32).to(tl.uint32)[:, None] + zeros
    word0, word1, word2, word3 = tl.philox_impl(counter0, counter1, counter2, counter3, key0, key1)
    words = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))
    return ((words >> 9).to(tl.float32) + 0.5) * (2.0**-23)


@triton.jit(do_not_specialize=["num_rows", "num_eos"])
def sample_step_kernel(
    logits_ptr,
    seeds_ptr,
    uids_ptr,
    steps_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    next_state_ptr,
    accept_tag_ptr,
    states_ptr,
    goal_masks_ptr,
    eos_ids_ptr,
    ignore_eos_ptr,
    max_tokens_ptr,
    token_ids_ptr,
    logprobs_ptr,
    new_states_ptr,
    finish_ptr,
    num_rows,
    vocab_size,
    num_eos,
    logits_stride,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = rows < num_rows
    rows = tl.minimum(rows, num_rows - 1)  # a tile's end repeats the last row, unwritten
    row_ptrs = logits_ptr + rows.to(tl.int64) * logits_stride
    steps = tl.load(steps_ptr + rows)

    # The likeliest id, the sum of exp(logit - largest), and the least logit that is not -inf.
    largest = tl.full((BLOCK_R,), float("-inf"), dtype=tl.float32)
    smallest = tl.full((BLOCK_R,), float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_R,), dtype=tl.float32)
    tokens = tl.zeros((BLOCK_R,), dtype=tl.int32)
    for start in range(0, vocab_size, BLOCK_V):
        values = load_logits(row_ptrs, start, vocab_size, BLOCK_V)
        top, first = largest_of(values, start, vocab_size, BLOCK_V)
        is_better = top > largest
        tokens = tl.where(is_better, first, tokens)
        new_largest = tl.where(is_better, top, largest)
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # -inf - -inf would be NaN
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(values - base[:, None]), axis=1)
        largest = new_largest
        is_finite = values > float("-inf")
        smallest = tl.minimum(smallest, tl.min(tl.where(is_finite, values, float("inf")), axis=1))

    temperature = tl.load(temperature_ptr + rows)
    is_sampled = temperature > 0
    if tl.max(is_sampled.to(tl.int32), axis=0) > 0:
        temperature = tl.where(is_sampled, temperature, 1.0)
        top_k = tl.load(top_k_ptr + rows)
        top_p = tl.load(top_p_ptr + rows)
        min_p = tl.load(min_p_ptr + rows)

        # The last kept logit (-inf: all are kept) and how many of its ties are.
        is_cut = is_sampled & (top_k > 0) & (top_k < vocab_size)
        low = tl.where(is_cut, smallest, largest)
        last, above = find_last(
            *(row_ptrs, vocab_size, low, largest, top_k.to(tl.int64)),
            *(largest, temperature, False, BLOCK_V),
        )
        last = tl.where(is_cut, last, float("-inf"))
        num_ties = tl.where(is_cut, vocab_size, 0)
        is_cut = is_sampled & (top_p < 1)
        if tl.max(is_cut.to(tl.int32), axis=0) > 0:
            mass = tl.zeros((BLOCK_R,), dtype=tl.int64)
            for start in range(0, vocab_size, BLOCK_V):
                values = load_logits(row_ptrs, start, vocab_size, BLOCK_V)
                mass += amount_from(values, last, largest, temperature, True)
            target = tl.ceil(top_p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)
            target = tl.maximum(target, 1)
            low = tl.where(is_cut, tl.maximum(last, smallest), largest)
            found, above = find_last(
                *(row_ptrs, vocab_size, low, largest, target),
                *(largest, temperature, True, BLOCK_V),
            )
            each = (tl.exp((found - largest) / temperature) * WHOLE).to(tl.int64)
            each = tl.maximum(each, 1)
            ties = tl.minimum((target - above + each - 1) // each, vocab_size).to(tl.int32)
            last = tl.where(is_cut, found, last)
            num_ties = tl.where(is_cut, ties, num_ties)
        # min_p is a bound on the logit: the share of (x - largest) / temperature is exp of it.
        bound = largest.to(tl.float64) + temperature.to(tl.float64) * tl.log(min_p.to(tl.float64))

        seeds = tl.load(seeds_ptr + rows)
        uids = tl.load(uids_ptr + rows)
        best = tl.full((BLOCK_R,), float("-inf"), dtype=tl.float32)
        choice = tokens
        num_seen = tl.zeros((BLOCK_R,), dtype=tl.int32)
        for start in range(0, vocab_size, BLOCK_V):
            values = load_logits(row_ptrs, start, vocab_size, BLOCK_V)
            is_tie = values == last[:, None]
            rank = num_seen[:, None] + tl.cumsum(is_tie.to(tl.int32), axis=1)
            num_seen += tl.sum(is_tie.to(tl.int32), axis=1)
            is_kept = (values > last[:, None]) | (is_tie & (rank <= num_ties[:, None]))
            is_kept &= values.to(tl.float64) >= bound[:, None]
            if tl.max(tl.max(is_kept.to(tl.int32), axis=1), axis=0) > 0:
                noise = -tl.log(-tl.log(uniforms(seeds, uids, steps, start, BLOCK_V)))
                scores = values / temperature[:, None] + noise
                scores = tl.where(is_kept, scores, float("-inf"))
                top, first = largest_of(scores, start, vocab_size, BLOCK_V)
                choice = tl.where(top > best, first, choice)
                best = tl.maximum(best, top)
        tokens = tl.where(is_sampled, choice, tokens)

    chosen = tl.load(row_ptrs + tokens).to(tl.float32)
    tl.store(token_ids_ptr + rows, tokens.to(tl.int64), mask=is_row)
    tl.store(logprobs_ptr + rows, chosen - largest - tl.log(total), mask=is_row)

    states = tl.load(states_ptr + rows).to(tl.int64)
    next_ptrs = next_state_ptr + states * vocab_size + tokens
    states = tl.load(next_ptrs).to(tl.int32)
    tl.store(new_states_ptr + rows, states, mask=is_row)
    tags = tl.load(accept_tag_ptr + states)
    goals = tl.load(goal_masks_ptr + rows)
    is_goal = (goals >> tl.maximum(tags, 0).to(tl.int64)) & 1 == 1
    max_tokens = tl.load(max_tokens_ptr + rows)
    finish = tl.where(steps + 1 >= max_tokens, LENGTH, 0)
    finish = tl.where(tags >= 0, tl.where(is_goal, TAG, WRONG_TAG), finish)
    heeds_eos = tl.load(ignore_eos_ptr + rows) == 0
    for e in range(num_eos):
        finish = tl.where(heeds_eos & (tokens == tl.load(eos_ids_ptr + e)), EOS, finish)
    tl.store(finish_ptr + rows, finish.to(tl.int8), mask=is_row)


def sample_step(
    logits: Tensor,
    seeds: Tensor,
    uids: Tensor,
    steps: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    next_state: Tensor,
    accept_tag: Tensor,
    states: Tensor,
    goal_masks: Tensor,
    eos_ids: Tensor,
    ignore_eos: Tensor,
    max_tokens: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    per_row = (seeds, uids, steps, temperature, top_k, top_p, min_p)
    rest = (next_state, accept_tag, states, goal_masks, eos_ids, ignore_eos, max_tokens)
    check_shapes(
        "logits R V, seeds R, uids R, steps R, temperature R, top_k R, top_p R, min_p R, "
        "next_state S V, accept_tag S, states R, goal_masks R, eos_ids E, ignore_eos R, "
        "max_tokens R",
        *(logits, *per_row, *rest),
    )
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1, "logits' columns must be contiguous"
    assert 0 < vocab_size <= MAX_VOCAB, f"vocab_size must be at most {MAX_VOCAB}"
    assert all(x.is_contiguous() for x in (*per_row, *rest)), "arguments must be contiguous"
    dtypes = (torch.int64, torch.float32, torch.int32, torch.int8)
    out = tuple(torch.empty(num_rows, dtype=dtype, device=logits.device) for dtype in dtypes)
    block_v = min(tile(vocab_size, 4), MAX_BLOCK_V)
    block_r = max(1, min(tile(num_rows), ELEMENTS // block_v))
    launch(
        sample_step_kernel,
        (triton.cdiv(num_rows, block_r),),
        *(logits, *per_row, *rest, *out),
        *(num_rows, vocab_size, len(eos_ids), logits.stride(0)),
        BLOCK_R=block_r,
        BLOCK_V=block_v,
        num_warps=min(max(block_v // 256, 1), 16),
    )
    token_ids, logprobs, new_states, finish = out
    return token_ids, logprobs, new_states, finish
