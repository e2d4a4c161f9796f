"""Where cached state lives: paged self-attention KV, cross-attention image slots, and what fits."""
