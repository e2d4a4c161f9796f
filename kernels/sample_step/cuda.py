"""sample_step by csrc/cuda/sample_step.h: one launch, a block a row, no sort.

Takes logits in float16 and bfloat16 too: they are read as they are and computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels import cuda_library
from stagebeam.kernels.shapes import check_shapes

why_unavailable = cuda_library.why_unavailable
_DTYPES = (
    *(torch.int64, torch.int64, torch.int32, torch.float32, torch.int32, torch.float32),
    *(torch.float32, torch.int16, torch.int32, torch.int32, torch.int64, torch.int64),
    *(torch.bool, torch.int32),
)  # of the arguments after `logits`


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
    rest = (
        *(seeds, uids, steps, temperature, top_k, top_p, min_p),
        *(next_state, accept_tag, states, goal_masks, eos_ids, ignore_eos, max_tokens),
    )
    check_shapes(
        "logits R V, seeds R, uids R, steps R, temperature R, top_k R, top_p R, min_p R, "
        "next_state S V, accept_tag S, states R, goal_masks R, eos_ids E, ignore_eos R, "
        "max_tokens R",
        logits,
        *rest,
    )
    assert tuple(tensor.dtype for tensor in rest) == _DTYPES, "sample_step: wrong dtypes"
    num_rows, vocab_size = logits.shape
    dtypes = (torch.int64, torch.float32, torch.int32, torch.int8)
    tokens, logprobs, new_states, finish = (
        torch.empty(num_rows, dtype=dtype, device=logits.device) for dtype in dtypes
    )
    cuda_library.call(
        "stagebeam_cuda_sample_step",
        cuda_library.FORMATS[logits.dtype],
        cuda_library.pointers((logits, *rest)),
        cuda_library.pointers((tokens, logprobs, new_states, finish)),
        num_rows,
        vocab_size,
        len(eos_ids),
        on=logits,
    )
    return tokens, logprobs, new_states, finish
