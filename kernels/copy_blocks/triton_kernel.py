"""Triton copy_blocks; the package's docstring is the contract. One launch for all pairs and layers.

The caches' addresses are a table on the device, made once for a list of caches and kept: under graph
capture the warm-up makes it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagebeam.kernels.shapes import check_shapes
from stagebeam.kernels.triton_launch import launch, tile
from stagebeam.kernels.triton_launch import why_unavailable as why_unavailable

MAX_BLOCK = 4096
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size


@triton.jit
def copy_blocks_kernel(
    addresses_ptr,
    pairs_ptr,
    word_ptr,
    NUM_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program copies a part of one block of one cache; word_ptr only says what a word is."""
    pair = tl.program_id(0)
    address = tl.load(addresses_ptr + tl.program_id(1))
    cache_ptr = tl.multiple_of(address.to(tl.pointer_type(word_ptr.dtype.element_ty)), 16)
    source = tl.load(pairs_ptr + 2 * pair).to(tl.int64)
    destination = tl.load(pairs_ptr + 2 * pair + 1).to(tl.int64)
    words = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_inside = words < NUM_WORDS
    content = tl.load(cache_ptr + source * NUM_WORDS + words, mask=is_inside)
    tl.store(cache_ptr + destination * NUM_WORDS + words, content, mask=is_inside)


@lru_cache(maxsize=64)
def _address_table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(addresses, dtype=torch.int64, device=device)


def copy_blocks(kv_layers: list[tuple[Tensor, Tensor]], pairs: Tensor) -> None:
    check_shapes("pairs M 2", pairs)
    caches = [cache for layer in kv_layers for cache in layer]
    if not caches:
        return
    first = caches[0]
    assert all(cache.is_contiguous() for cache in caches), "caches must be contiguous"
    assert all(cache.shape == first.shape and cache.dtype == first.dtype for cache in caches), (
        "the caches of all layers must have one shape and dtype"
    )
    addresses = tuple(0 if cache.is_meta else cache.data_ptr() for cache in caches)
    num_words = first[0].numel()
    block = min(tile(num_words), MAX_BLOCK)
    launch(
        copy_blocks_kernel,
        (len(pairs), len(caches), triton.cdiv(num_words, block)),
        *(_address_table(addresses, first.device), pairs.contiguous()),
        first.view(WORDS[first.element_size()]),
        NUM_WORDS=num_words,
        BLOCK=block,
    )
