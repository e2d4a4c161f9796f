"""int8_linear(x, weight, scale): products with int8 weights of one scale an output column.

x:       [R, K] float16 or bfloat16; a kernel may want K to be a multiple of 16
weight:  [N, K] int8; scale: [N] float32, the column's weights are weight * scale
returns: [R, N], x's dtype, accumulated in float32; the scale is applied to the sum
Not part of the resolved ops: no model asks for it by default.
"""
