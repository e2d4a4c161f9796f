"""verdict_logits(hidden, lm_head, ids): the logits of two tokens a row, without the other columns.

hidden:  [R, C] hidden states after the final norm
lm_head: [V, C], hidden's dtype
ids:     [R, 2] int64 token ids of the two verdicts
returns: [R, 2] float32 (float64 for float64), accumulated in it
"""
