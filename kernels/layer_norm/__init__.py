"""layer_norm(x, weight, bias, eps): layer normalisation over the last dimension (vision tower).

x:            [..., C]
weight, bias: [C], x's dtype
returns:      [..., C], x's dtype; statistics in float32 (float64 for float64), as torch.nn.LayerNorm
"""
