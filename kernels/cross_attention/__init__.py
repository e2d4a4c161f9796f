"""cross_attention(...): attention of text rows to the vision tokens of their images.

Rows with the same image that follow each other form a group, and a group's image is read once: group
g owns rows group_offsets[g] .. group_offsets[g + 1]. Two groups may have the same image.

q:                [T, H, D]; row heads h * H / Hkv .. (h + 1) * H / Hkv - 1 use KV head h
k_slots, v_slots: [num_slots, Lv, Hkv, D], q's dtype; a slot in use is written over its whole length
group_offsets:    [G + 1] int32, from 0 to T; group_slots: [G] int32 image slot, -1 for rows without
                  an image, which give zeros
kv_lens:          [T] int32 vision tokens a row attends to, from the slot's start, at least 1
max_group_rows:   most rows in a group; sm_scale: the factor on q k
returns:          [T, H, D], q's dtype
Slots that no group names are never read into the result, whatever they hold.
"""
