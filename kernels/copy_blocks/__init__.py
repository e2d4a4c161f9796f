"""copy_blocks(kv_layers, pairs): copy whole cache blocks in every layer, in place.

kv_layers: a (k_cache, v_cache) a layer, each [num_blocks, block_size, Hkv, D], written; with int8
           their scales [num_blocks, block_size, Hkv] too. Contiguous, or on a CPU with all tokens
           of a head side by side
pairs:     [M, 2] int32 (source, destination) block ids; destinations are distinct and none is a source
"""
