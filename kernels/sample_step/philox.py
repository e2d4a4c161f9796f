"""Philox 4x32-10 (Salmon et al., SC 2011) on int64 tensors, and the uniforms of token ids.

Knows no logits. The words equal Random123's and the C++ core's, bit for bit: a 32 x 32 bit product
wraps in int64 but keeps its 64 bits, and its high half is what an arithmetic shift and a mask leave.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(keys: Tensor, counters: Tensor) -> Tensor:
    """Ten rounds: keys [2, ...] and counters [4, ...] (int64 holding 32 bits) -> words [4, ...]."""
    multipliers = _constants(MULTIPLIERS, counters)
    weyl = _constants(WEYL, counters)
    first, second = counters[0::2], counters[1::2]  # words 0 and 2, words 1 and 3
    for index in range(10):
        products = (first * multipliers).flip(0)
        key = (keys + index * weyl).bitwise_and_(MASK)
        first = (products >> 32).bitwise_xor_(second).bitwise_xor_(key).bitwise_and_(MASK)
        second = products  # its high half is masked away after the next xor
    return torch.stack((first, second & MASK), 1).flatten(0, 1)


def vocab_uniforms(seeds: Tensor, uids: Tensor, steps: Tensor, vocab_size: int) -> Tensor:
    """The uniforms of all token ids, [R, vocab_size] float32; seeds, uids, steps are [R]."""
    quads = torch.arange(-(-vocab_size // 4), device=seeds.device)
    words = _words(seeds, uids, steps, quads.unsqueeze(0))  # [4, R, Q]
    return _uniforms(words).permute(1, 2, 0).flatten(1)[:, :vocab_size]


def token_uniforms(seeds: Tensor, uids: Tensor, steps: Tensor, token_ids: Tensor) -> Tensor:
    """The uniforms of some token ids a row, [R, W] float32; token_ids is [R, W] int64."""
    words = _words(seeds, uids, steps, token_ids >> 2)
    return _uniforms(words.gather(0, (token_ids & 3).unsqueeze(0)).squeeze(0))


def _words(seeds: Tensor, uids: Tensor, steps: Tensor, quads: Tensor) -> Tensor:
    """Four words a quad of ids: quads [R or 1, Q] -> [4, R, Q]."""
    keys = torch.stack((seeds & MASK, (seeds >> 32) & MASK)).unsqueeze(-1)
    step, low, high = (x.unsqueeze(-1) for x in (steps.long() & MASK, uids & MASK, uids >> 32))
    words = torch.broadcast_tensors(step, quads, low, high & MASK)
    return philox4x32(keys, torch.stack(words))


def _uniforms(words: Tensor) -> Tensor:
    """Odd multiples of 2^-24, exact in float32: never 0 or 1."""
    return (words >> 9).float().add_(0.5).mul_(2.0**-23)


def _constants(pair: tuple[int, int], like: Tensor) -> Tensor:
    shape = (2, *[1] * (like.dim() - 1))
    return torch.tensor(pair, device=like.device).view(shape)
