"""PyTorch reference of cross_attention; the package's docstring is the contract."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes

MAX_GATHERED = 1 << 16  # elements of a slot's keys: more are viewed, group by group, not gathered


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
    num_rows, num_groups = len(q), len(group_slots)
    if num_rows == 0:
        return torch.empty_like(q)
    is_seen = torch.arange(k_slots.shape[1], device=q.device) < kv_lens.unsqueeze(1)  # [T, Lv]
    is_ragged = num_groups * max_group_rows > 2 * num_rows + 256
    if q.device.type == "cpu" and (k_slots[0].numel() > MAX_GATHERED or is_ragged):
        return _by_group(q, k_slots, v_slots, group_offsets, group_slots, is_seen, sm_scale)

    members = group_offsets[:-1, None] + torch.arange(max_group_rows, device=q.device)
    members = torch.minimum(members, group_offsets[1:, None] - 1).clamp_(min=0)  # padding repeats
    slots = group_slots.clamp(min=0)
    padded = _attend(q[members], k_slots[slots], v_slots[slots], is_seen[members], sm_scale)
    rows = torch.arange(num_rows, device=q.device, dtype=group_offsets.dtype)
    row_group = torch.searchsorted(group_offsets, rows, right=True, out_int32=True) - 1
    own = row_group * max_group_rows + rows - group_offsets[row_group]
    has_image = (group_slots >= 0)[row_group].view(-1, 1, 1)
    return torch.where(has_image, padded.flatten(0, 1)[own], 0)


def _by_group(
    q: Tensor,
    k_slots: Tensor,
    v_slots: Tensor,
    group_offsets: Tensor,
    group_slots: Tensor,
    is_seen: Tensor,
    sm_scale: float,
) -> Tensor:
    """One product a group, on views of the slots; reads the groups on the host."""
    out = torch.zeros_like(q)
    offsets = group_offsets.tolist()
    for slot, begin, end in zip(group_slots.tolist(), offsets, offsets[1:]):
        if slot >= 0:
            own = slice(begin, end)
            image = slice(slot, slot + 1)
            rows = q[own].unsqueeze(0), k_slots[image], v_slots[image], is_seen[own].unsqueeze(0)
            out[own] = _attend(*rows, sm_scale).squeeze(0)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor, sm_scale: float) -> Tensor:
    """q [G, M, H, D], k and v [G, Lv, Hkv, D], is_seen [G, M, Lv] -> [G, M, H, D]."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q_heads, k_heads, v_heads = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    mask = is_seen.unsqueeze(1)
    out = F.scaled_dot_product_attention(
        q_heads, k_heads, v_heads, attn_mask=mask, scale=sm_scale, enable_gqa=True
    )
    return out.transpose(1, 2).to(q.dtype)
