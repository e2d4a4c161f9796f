"""prefill_attention(...): causal attention of packed chunks over their paged caches.

Sequence s owns rows cu_seqlens_q[s] .. cu_seqlens_q[s + 1] of q: the last of its seq_lens[s] cached
tokens (keys and values already stored). A row attends to the tokens up to and including itself.

q:                [T, H, D]; row heads h * H / Hkv .. (h + 1) * H / Hkv - 1 use KV head h
k_cache, v_cache: [num_blocks, block_size, Hkv, D], q's dtype
cu_seqlens_q:     [S + 1] int32, from 0 to T; seq_lens: [S] int32; a sequence may have no rows
block_tables:     [S, W] int32, pad -1
max_seqlen_q:     most rows of a sequence; max_seqlen_k: longest of seq_lens
returns:          [T, H, D], q's dtype
Cache positions past a length are never read into the result, whatever they hold.

The twin `flash_attn` has no kernel for float32, for head_dim over 256 or for one that is no multiple
of 8; it hands such a call, by its dtype and head_dim alone, to the twin `triton`.
"""
