"""sample_step in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import exact
from stagebeam.kernels.shapes import check_shapes


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
    check_shapes(
        "logits R V, seeds R, uids R, steps R, temperature R, top_k R, top_p R, min_p R, "
        "next_state S V, accept_tag S, states R, goal_masks R, eos_ids E, ignore_eos R, "
        "max_tokens R",
        *(logits, seeds, uids, steps, temperature, top_k, top_p, min_p),
        *(next_state, accept_tag, states, goal_masks, eos_ids, ignore_eos, max_tokens),
    )
    num_rows, vocab_size = logits.shape
    int16, int32, int64 = torch.int16, torch.int32, torch.int64
    float32 = torch.float32
    given = [
        exact(x, dtype)
        for x, dtype in (
            *((logits, float32), (seeds, int64), (uids, int64), (steps, int32)),
            *((temperature, float32), (top_k, int32), (top_p, float32), (min_p, float32)),
            *((next_state, int16), (accept_tag, int32), (states, int32), (goal_masks, int64)),
            *((eos_ids, int64), (ignore_eos, torch.bool), (max_tokens, int32)),
        )
    ]
    out = tuple(torch.empty(num_rows, dtype=dtype) for dtype in (int64, float32, int32, torch.int8))
    addresses = [x.data_ptr() for x in given]
    _cpu.sample_step(
        *(addresses[0], num_rows, vocab_size, *addresses[1:13], len(eos_ids), *addresses[13:]),
        *(x.data_ptr() for x in out),
    )
    token_ids, logprobs, new_states, finish = out
    return token_ids, logprobs, new_states, finish
