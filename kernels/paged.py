"""Reading a paged cache with PyTorch: blocks gathered into rows, nothing unused let through.

Used by the references only; a kernel reads the blocks where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size


def read_blocks(
    k_cache: Tensor, v_cache: Tensor, tables: Tensor, lens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys and values of each block table, zero past its length whatever the caches hold there.

    k_cache, v_cache: [num_blocks, block_size, Hkv, D]
    tables:           [B, W] int32, pad -1; lens: [B] tokens
    returns:          keys and values [B, L, Hkv, D] with L = W * block_size, accumulation dtype (at
                      least float32), and is_used [B, L] bool
    """
    num_blocks, block_size, num_kv_heads, head_dim = k_cache.shape
    blocks = tables.clamp(min=0).view(-1)
    num_tokens = tables.shape[1] * block_size
    is_used = torch.arange(num_tokens, device=k_cache.device) < lens.unsqueeze(1)
    # Masking the bits: a product would keep NaN, and masked_fill_ is 6 times slower on a CPU.
    bits = BITS[k_cache.element_size()]
    mask = is_used.to(bits).neg_().unsqueeze(-1)
    wide = torch.promote_types(k_cache.dtype, torch.float32)

    def read(cache: Tensor) -> Tensor:
        rows = cache.view(num_blocks, -1).index_select(0, blocks)
        rows = rows.view(len(tables), num_tokens, num_kv_heads * head_dim)
        rows.view(bits).bitwise_and_(mask)
        return rows.view(len(tables), num_tokens, num_kv_heads, head_dim).to(wide)

    return read(k_cache), read(v_cache), is_used
