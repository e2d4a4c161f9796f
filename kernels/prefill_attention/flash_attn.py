"""prefill_attention by the package flash-attn (2.1 or newer), over a prefix gathered from its blocks.

Importing this needs `flash_attn` and `triton`. Version 2 pages have at least 256 tokens, so the keys
and values of the block tables are first packed into contiguous rows, the prefix's and the chunk's.
What flash-attn cannot compute goes to the Triton twin, as the package's docstring says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from flash_attn import __version__, flash_attn_varlen_func
from torch import Tensor

from stagebeam.kernels.prefill_attention import triton_kernel
from stagebeam.kernels.shapes import check_shapes

LEAST_VERSION = (2, 1)  # the causal mask is aligned to the last key from here on
LEAST_CAPABILITY = (8, 0)
DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256


def why_unavailable() -> str | None:
    """The reason in words why flash-attn cannot run here; None if it can."""
    if tuple(int(part) for part in __version__.split(".")[:2]) < LEAST_VERSION:
        return f"needs flash-attn 2.1 or newer (its causal mask changed there), got {__version__}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < LEAST_CAPABILITY:
        return f"needs a GPU of sm_80 or newer, got sm_{major}{minor}"
    return None


def is_served(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash-attn computes a call of this dtype and head_dim."""
    return dtype in DTYPES and head_dim <= MAX_HEAD_DIM and head_dim % 8 == 0


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    sm_scale: float,
) -> Tensor:
    if not is_served(q.dtype, q.shape[2]):
        return triton_kernel.prefill_attention(
            *(q, k_cache, v_cache, cu_seqlens_q, seq_lens, block_tables),
            *(max_seqlen_q, max_seqlen_k, sm_scale),
        )
    check_shapes(
        "q T H D, k_cache N B Hkv D, v_cache N B Hkv D, seq_lens S, block_tables S W",
        *(q, k_cache, v_cache, seq_lens, block_tables),
    )
    assert q.stride(2) == 1, "q's heads must be contiguous"
    assert k_cache.is_contiguous(), "k_cache must be contiguous"
    assert v_cache.is_contiguous(), "v_cache must be contiguous"
    if max_seqlen_q == 0:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    cu_seqlens_k = F.pad(seq_lens.cumsum(0, dtype=torch.int32), (1, 0))
    slots = _packed_slots(cu_seqlens_k, block_tables, k_cache.shape[1], max_seqlen_k)
    k, v = (cache.flatten(0, 1).index_select(0, slots) for cache in (k_cache, v_cache))
    out: Tensor = flash_attn_varlen_func(
        *(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k),
        softmax_scale=sm_scale,
        causal=True,
    )
    return out


def _packed_slots(
    cu_seqlens_k: Tensor, block_tables: Tensor, block_size: int, max_seqlen_k: int
) -> Tensor:
    """Cache slots of all sequences' tokens, one sequence after another: [S * max_seqlen_k] int32.

    The number of rows follows from shapes, so nothing waits for the device; rows past the last
    sequence's end are slots of no meaning, which flash-attn does not read.
    """
    num_seqs, width = block_tables.shape
    rows = torch.arange(num_seqs * max_seqlen_k, dtype=torch.int32, device=cu_seqlens_k.device)
    seqs = torch.searchsorted(cu_seqlens_k[1:], rows, right=True).clamp_(max=num_seqs - 1)
    tokens = rows - cu_seqlens_k[seqs]
    blocks = block_tables[seqs, (tokens // block_size).clamp_(max=width - 1)].clamp_(min=0)
    return blocks * block_size + tokens % block_size
