"""branch_attention(...): decode attention of branches that share a trunk: one row a branch.

Row r of group g attends to the trunk's `trunk_lens[g]` tokens, read once for all rows of the group,
and to its own tail's `tail_lens[r]` tokens (its own new token included, already stored). Rows of a group are
consecutive: group g owns rows group_offsets[g] .. group_offsets[g + 1].

q:                [R, H, D]; row r's heads h * H / Hkv .. (h + 1) * H / Hkv - 1 use KV head h
k_cache, v_cache: [num_blocks, block_size, Hkv, D], q's dtype
group_offsets:    [G + 1] int32, from 0 to R; row_group: [R] int32
trunk_tables:     [G, Wt] int32, pad -1, Wt may be 0; trunk_lens: [G] int32, whole blocks, may be 0
tail_tables:      [R, W] int32, pad -1; tail_lens: [R] int32
max_group_rows:   most rows in a group; sm_scale: the factor on q k
returns:          [R, H, D], q's dtype; zeros for a row that attends to nothing
Cache positions past a length are never read into the result, whatever they hold.
"""
