"""Tensors as the C++ kernels take them: float32, by address; contiguous, or caches in known strides.

Used by the native twins only. A caller keeps the tensor alive while the kernel runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stagebeam.bindings import _cpu

_CACHE_FORMATS = {
    torch.float32: _cpu.CACHE_FORMATS["float32"],
    torch.bfloat16: _cpu.CACHE_FORMATS["bfloat16"],
    torch.float16: _cpu.CACHE_FORMATS["float16"],
}


def check_on_host(*tensors: Tensor) -> None:
    """Refuse tensors that the C++ kernels cannot reach."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise ValueError(
                f"the native kernels need tensors on the CPU, got one on {tensor.device}; "
                "choose another backend for that device"
            )


def floats(x: Tensor) -> Tensor:
    """x as contiguous float32, itself where it is that already."""
    check_on_host(x)
    return x.to(torch.float32).contiguous()


def exact(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x contiguous; its dtype must be this one."""
    check_on_host(x)
    if x.dtype != dtype:
        raise ValueError(f"expected a tensor of {dtype}, got {x.dtype}")
    return x.contiguous()


def has_heads_apart(cache: Tensor) -> bool:
    """Whether a cache [num_blocks, block_size, Hkv, ..] has all tokens of a head side by side."""
    return cache.movedim(2, 0).is_contiguous()


def cache_format(cache: Tensor, *, may_have_heads_apart: bool = False) -> int:
    """The kernels' code of a cache's dtype; the cache must be contiguous, or may have its heads apart."""
    check_on_host(cache)
    is_whole = cache.is_contiguous() or (may_have_heads_apart and has_heads_apart(cache))
    if cache.dtype not in _CACHE_FORMATS or not is_whole:
        raise ValueError(
            f"the native kernels need contiguous caches{' or heads apart' * may_have_heads_apart} of "
            f"float32, bfloat16 or float16, got {cache.dtype}, strides {cache.stride()}"
        )
    return _CACHE_FORMATS[cache.dtype]
