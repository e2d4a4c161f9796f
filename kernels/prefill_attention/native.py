"""prefill_attention in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import cache_format, exact, floats
from stagebeam.kernels.shapes import check_shapes


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
    check_shapes(
        "q T H D, k_cache N B Hkv D, v_cache N B Hkv D, seq_lens S, block_tables S W",
        *(q, k_cache, v_cache, seq_lens, block_tables),
    )
    rows = floats(q)
    offsets, lens, tables = (exact(x, torch.int32) for x in (cu_seqlens_q, seq_lens, block_tables))
    out = torch.empty_like(rows)
    _, num_heads, head_dim = rows.shape
    _cpu.prefill_attention(
        *(rows.data_ptr(), rows.stride(0), k_cache.data_ptr(), v_cache.data_ptr()),
        *(out.data_ptr(), cache_format(k_cache), k_cache.shape[1], num_heads, k_cache.shape[2]),
        *(head_dim, sm_scale, len(lens), offsets.data_ptr(), lens.data_ptr()),
        *(tables.data_ptr(), tables.shape[1]),
    )
    return out.to(q.dtype)
