"""branch_attention in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import cache_format, exact, floats
from stagebeam.kernels.shapes import check_shapes


def branch_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group_offsets: Tensor,
    row_group: Tensor,
    trunk_tables: Tensor,
    trunk_lens: Tensor,
    tail_tables: Tensor,
    tail_lens: Tensor,
    max_group_rows: int,
    sm_scale: float,
) -> Tensor:
    check_shapes(
        "q R H D, k_cache N B Hkv D, v_cache N B Hkv D, row_group R, "
        "trunk_tables G Wt, trunk_lens G, tail_tables R W, tail_lens R",
        *(q, k_cache, v_cache, row_group, trunk_tables, trunk_lens, tail_tables, tail_lens),
    )
    rows = floats(q)
    offsets, trunks, trunk_tokens, tails, tail_tokens = (
        exact(x, torch.int32)
        for x in (group_offsets, trunk_tables, trunk_lens, tail_tables, tail_lens)
    )
    out = torch.empty_like(rows)
    num_rows, num_heads, head_dim = rows.shape
    _cpu.branch_attention(
        *(rows.data_ptr(), rows.stride(0), k_cache.data_ptr(), v_cache.data_ptr()),
        *(out.data_ptr(), cache_format(k_cache), k_cache.shape[1], num_heads, k_cache.shape[2]),
        *(head_dim, sm_scale, num_rows, len(trunk_tokens), offsets.data_ptr()),
        *(trunks.data_ptr(), trunks.shape[1], trunk_tokens.data_ptr()),
        *(tails.data_ptr(), tails.shape[1], tail_tokens.data_ptr()),
    )
    return out.to(q.dtype)
