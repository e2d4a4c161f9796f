"""merge_states(out_a, lse_a, out_b, lse_b): attention over the union of two disjoint sets of keys,
from the attention over each (flashinfer's merge of attention states).

out_a, out_b: [R, H, D]
lse_a, lse_b: [R, H] natural log of the sum of the exponentials of the scaled scores, float32 (float64
              for float64); -inf where a set is empty, whose out is then ignored, whatever it holds
returns:      (out [R, H, D] in out_a's dtype, lse [R, H]); zeros and -inf where both sets are empty
"""
