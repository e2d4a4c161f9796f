"""store_kv_cache(key, value, k_cache, v_cache, slot_mapping): write this step's keys and values into
their cache slots, in place.

key, value:       [T, Hkv, D], the cache's dtype
k_cache, v_cache: [num_blocks, block_size, Hkv, D], contiguous, written
slot_mapping:     [T] int32, block_id * block_size + offset; -1 skips a padding token; no slot twice
"""
