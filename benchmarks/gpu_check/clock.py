"""Seconds on a device: CUDA events where it has them, the host's clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

_FLUSH_BYTES = 256 << 20  # more than any L2 cache: a repeat must not find its data there
_WARM_UPS = 3


def call_seconds(call: Callable[[], object], device: torch.device, num_repeats: int = 20) -> float:
    """The median time of one call with cold caches, after some that compile and warm up."""
    is_cuda = device.type == "cuda"
    flush = torch.empty(_FLUSH_BYTES if is_cuda else 0, dtype=torch.int8, device=device)
    times = []
    for turn in range(_WARM_UPS + num_repeats):
        flush.zero_()
        if is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            seconds = begin.elapsed_time(end) / 1000
        else:
            began = time.perf_counter()
            call()
            seconds = time.perf_counter() - began
        if turn >= _WARM_UPS:
            times.append(seconds)
    return median(times)


def copy_bandwidth(device: torch.device, num_bytes: int = 1 << 30, num_repeats: int = 20) -> float:
    """Bytes read and written a second by the largest copy: what memory gives in practice."""
    source = torch.empty(num_bytes, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / call_seconds(lambda: target.copy_(source), device, num_repeats)
