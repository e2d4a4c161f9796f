"""Reading a paged cache with PyTorch: blocks gathered into rows, nothing unused let through.

Used by the references only; a kernel reads the blocks where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size


def read_blocks(cache: Tensor, tables: Tensor, lens: Tensor) -> Tensor:
    """The tokens of each block table, zero past its length whatever the cache holds there.

    cache:   [num_blocks, block_size, Hkv, D]
    tables:  [B, W] int32, pad -1; lens: [B] tokens
    returns: [B, W * block_size, Hkv, D], accumulation dtype (at least float32)
    """
    num_blocks, block_size, num_kv_heads, head_dim = cache.shape
    batch, width = tables.shape
    blocks = cache.reshape(num_blocks, -1).index_select(0, tables.clamp(min=0).view(-1))
    rows = blocks.view(batch, width * block_size, num_kv_heads * head_dim)
    used = torch.arange(rows.shape[1], device=cache.device) < lens.unsqueeze(1)
    # Masking the bits: a product would keep NaN, and masked_fill_ is 6 times slower on a CPU.
    bits = BITS[cache.element_size()]
    rows.view(bits).bitwise_and_(used.to(bits).neg_().unsqueeze(-1))
    wide = torch.promote_types(cache.dtype, torch.float32)
    return rows.view(batch, -1, num_kv_heads, head_dim).to(wide)
