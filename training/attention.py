"""Attention for training short rows on a CPU: plain products and a softmax, as one more HF backend.

PyTorch's fused CPU attention is built for long sequences: at 130 tokens of 32 channels its backward
pass in bfloat16 takes 2.5 times as long as this, across 40 image patches 8 times (one AVX-512 core).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

SHORT_ROWS = "stagebeam_short_rows"


def attend_short_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """HF's attention contract: query [B, H, T, D], key and value [B, H_kv, S, D] to [B, T, H, D].

    No mask means causal where the module (or `is_causal`) says so, as with SDPA.
    """
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    rows, heads, length, dim = query.shape
    kv_heads, span = key.shape[1], key.shape[2]
    scale = dim**-0.5 if scaling is None else scaling
    grouped = (query * scale).reshape(rows, kv_heads, heads // kv_heads * length, dim)
    scores = (grouped @ key.transpose(-1, -2)).view(rows, heads, length, span)
    if attention_mask is not None:
        scores.add_(_bias(attention_mask[..., :span], scores.dtype))
    elif is_causal and length > 1:
        seen = torch.ones(length, span, dtype=torch.bool, device=scores.device).tril()
        scores.add_(_bias(seen, scores.dtype))
    weights = scores.softmax(-1)  # sums in float32 inside, whatever the dtype
    mixed = weights.view(rows, kv_heads, heads // kv_heads * length, span) @ value
    return mixed.view(rows, heads, length, dim).transpose(1, 2), None


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: filling them would cost more backwards than the products."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


AttentionInterface.register(SHORT_ROWS, attend_short_rows)
AttentionMaskInterface.register(SHORT_ROWS, sdpa_mask)
