"""The inner step of every Triton attention kernel: one tile of keys folded into a running softmax.

Knows no cache and no layout. Scores are kept in base 2, so `sm_scale_log2` is sm_scale * log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fold_keys(q, k, v, is_seen, top, total, out, sm_scale_log2):
    """Attend from q [M, D] to k and v [N, D] where is_seen [M, N]; returns the new (top, total, out).

    top [M] is the largest score so far (-inf for none), total [M] the sum of weights relative to it,
    out [M, D] the weighted sum of values, all float32. Products run on tensor cores in q's dtype.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * sm_scale_log2
    scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf - -inf would be NaN
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(weights, axis=1)
    out = tl.dot(weights.to(v.dtype), v, acc=out * fade[:, None], input_precision="ieee")
    return new_top, total, out


@triton.jit
def normalise(top, total, out):
    """(attention output [M, D], natural-log lse [M]); zeros and -inf for rows that saw no key."""
    is_empty = total == 0
    safe = tl.where(is_empty, 1.0, total)
    lse = tl.where(is_empty, float("-inf"), (top + tl.log2(safe)) * 0.6931471805599453)
    return out / safe[:, None], lse
