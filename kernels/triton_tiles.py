"""How wide the attention kernels' tiles are, and how many warps work on one: a table, not a search.

Found by compiling ahead of time: the widest that neither spill a register on sm_80, sm_90 and sm_100
nor leave a multiprocessor with one block. Tensor cores take 16 rows at least, their warp-group forms
64. float32 products ("ieee") run on no tensor core and unroll over head_dim, so its tiles are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stagebeam.kernels.triton_launch import tile

MIN_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTile:
    """block_m: query heads (of some rows of one KV head); block_n: keys; num_rows: whole rows in it"""

    block_m: int
    block_n: int
    num_rows: int
    num_warps: int


def attention_tile(num_rows: int, heads_per_kv: int, dtype: torch.dtype) -> AttentionTile:
    """The tile for at most `num_rows` rows that read the same keys."""
    is_narrow = dtype.itemsize <= 2
    max_rows, block_n = (64, 64) if is_narrow else (16, 16)
    block_m = min(tile(num_rows * heads_per_kv, MIN_ROWS), tile(heads_per_kv, max_rows))
    return AttentionTile(
        block_m=block_m,
        block_n=block_n,
        num_rows=block_m // heads_per_kv,
        num_warps=8 if block_m >= 64 else 4,
    )
