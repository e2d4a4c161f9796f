"""silu_mul(gate_up): silu of the first half times the second half (SwiGLU).

gate_up: [T, 2 I], the gate projection's I columns, then the up projection's
returns: [T, I]; silu is rounded to the dtype before the product, as Hugging Face does
"""
