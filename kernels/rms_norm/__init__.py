"""rms_norm(x, weight, eps): x over the root of its mean square, times a weight.

x:       [T, C]
weight:  [C], x's dtype
returns: [T, C], x's dtype; normalised in float32 (float64 for float64), rounded to x's dtype, then
         multiplied by the weight, as Hugging Face's LlamaRMSNorm does
"""
