"""PyTorch reference of branch_attention; the package's docstring is the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.kernels.merge_states.reference import merge_states
from stagebeam.kernels.paged import read_blocks
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
    check_shapes("group_offsets G1", group_offsets)
    num_rows, _, head_dim = q.shape
    if num_rows == 0:
        return torch.empty_like(q)
    num_kv_heads = k_cache.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    heads = q.reshape(num_rows, num_kv_heads, -1, head_dim).to(wide) * sm_scale
    tail_q = heads.transpose(0, 1)  # [Hkv, R, H / Hkv, D]
    out, lse = _attend(tail_q, k_cache, v_cache, tail_tables, tail_lens)
    out, lse = _by_row(out, num_rows), _by_row(lse.unsqueeze(-1), num_rows).squeeze(-1)
    if trunk_tables.shape[1] == 0:
        return out.to(q.dtype)

    # Rows padded to [G, M], so that the trunk is one batched product a group.
    starts, ends = group_offsets[:-1, None], group_offsets[1:, None]
    members = starts + torch.arange(max_group_rows, device=q.device)
    members = torch.minimum(members, ends - 1).clamp_(min=0)  # padding repeats a row
    num_groups = len(trunk_tables)
    trunk_q = heads[members].permute(2, 0, 1, 3, 4)  # [Hkv, G, M, H / Hkv, D]
    trunk_q = trunk_q.reshape(num_kv_heads, num_groups, -1, head_dim)
    trunk_out, trunk_lse = _attend(trunk_q, k_cache, v_cache, trunk_tables, trunk_lens)
    own = row_group * max_group_rows
    own = own + torch.arange(num_rows, device=q.device) - group_offsets[row_group]
    num_padded = num_groups * max_group_rows
    trunk_out = _by_row(trunk_out, num_padded)[own]
    trunk_lse = _by_row(trunk_lse.unsqueeze(-1), num_padded)[own].squeeze(-1)
    return merge_states(trunk_out, trunk_lse, out, lse)[0].to(q.dtype)


def _attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor, lens: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of M scaled queries a sequence: q [Hkv, B, M, D] -> out like q, lse [Hkv, B, M]."""
    k, v, is_used = read_blocks(k_cache, v_cache, tables, lens)
    kv_heads = range(q.shape[0])  # head by head: a strided product, where all at once would copy
    scores = torch.stack([torch.bmm(q[h], k[:, :, h].transpose(1, 2)) for h in kv_heads])
    scores += torch.where(is_used, 0.0, -torch.inf).to(q.dtype).unsqueeze(1)
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(q.dtype).min)  # -inf: no key at all
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    out = torch.stack([torch.bmm(weights[h], v[:, :, h]) for h in kv_heads])
    return out / total.clamp(min=torch.finfo(q.dtype).tiny), (top + total.log()).squeeze(-1)


def _by_row(x: Tensor, num_rows: int) -> Tensor:
    """[Hkv, B, M, D] with B * M = num_rows * H / Hkv to [num_rows, H, D]."""
    num_kv_heads, head_dim = x.shape[0], x.shape[-1]
    x = x.view(num_kv_heads, num_rows, -1, head_dim)
    return x.transpose(0, 1).reshape(num_rows, -1, head_dim)
