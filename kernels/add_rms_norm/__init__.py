"""add_rms_norm(x, residual, weight, eps): add to the residual stream and normalise the sum.

x, residual: [T, C], neither is written
weight:      [C], x's dtype
returns:     (normed, new_residual), both [T, C]; new_residual = x + residual rounded to x's dtype,
             normed = rms_norm(new_residual, weight, eps)
"""
