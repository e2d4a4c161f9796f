"""PyTorch reference of sample_step; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.sample_step.choice import Rows, choose_tokens
from stagebeam.kernels.shapes import check_shapes

TAG, EOS, LENGTH, WRONG_TAG = 1, 2, 3, 4  # codes of FINISH


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
    rows = Rows(seeds, uids, steps, temperature, top_k, top_p, min_p)
    token_ids = choose_tokens(logits, rows)
    chosen = logits.gather(1, token_ids.unsqueeze(1)).squeeze(1)
    logprobs = chosen - logits.logsumexp(1)

    new_states = next_state[states, token_ids].int()
    tags = accept_tag[new_states]
    is_goal = (goal_masks >> tags.clamp(min=0)) & 1 == 1
    is_eos = (token_ids.unsqueeze(1) == eos_ids).any(1) & ~ignore_eos
    finish = torch.where(steps + 1 >= max_tokens, LENGTH, 0)
    finish = torch.where(tags >= 0, torch.where(is_goal, TAG, WRONG_TAG), finish)
    finish = torch.where(is_eos, EOS, finish)
    return token_ids, logprobs, new_states, finish.to(torch.int8)
