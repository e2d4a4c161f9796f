"""cross_attention in C++ (csrc/cpu); the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu
from stagebeam.kernels.native_arrays import cache_format, exact, floats
from stagebeam.kernels.shapes import check_shapes


def cross_attention(
    q: Tensor,
    k_slots: Tensor,
    v_slots: Tensor,
    group_offsets: Tensor,
    group_slots: Tensor,
    kv_lens: Tensor,
    max_group_rows: int,
    sm_scale: float,
) -> Tensor:
    check_shapes(
        "q T H D, k_slots N Lv Hkv D, v_slots N Lv Hkv D, kv_lens T, group_slots G",
        *(q, k_slots, v_slots, kv_lens, group_slots),
    )
    rows = floats(q)
    offsets, slots, lens = (exact(x, torch.int32) for x in (group_offsets, group_slots, kv_lens))
    out = torch.empty_like(rows)
    _, num_heads, head_dim = rows.shape
    _cpu.cross_attention(
        *(rows.data_ptr(), rows.stride(0), k_slots.data_ptr(), v_slots.data_ptr()),
        *(out.data_ptr(), cache_format(k_slots), k_slots.shape[1], num_heads, k_slots.shape[2]),
        *(head_dim, sm_scale, len(slots), offsets.data_ptr(), slots.data_ptr(), lens.data_ptr()),
    )
    return out.to(q.dtype)
