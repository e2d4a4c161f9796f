"""rotary_(q, k, cos_sin, positions): rotate queries and keys by their positions, in place.

q:         [T, H, D], written; k: [T, Hkv, D], written; the last dimension contiguous, D even
cos_sin:   [max_positions, D] float32; a row is D/2 cosines, then D/2 sines
positions: [T] int64, all below max_positions
Half d of a head is paired with half d + D/2 (Hugging Face's rotate_half). cos and sin are rounded to
q's dtype first and products and sums are rounded in it, as Hugging Face does.
"""
