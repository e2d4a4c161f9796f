"""What this machine can do at best: how fast it reads memory and multiplies matrices.

Measured when asked for, since another machine's number would make every percentage wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_READ_BYTES = 256 << 20  # far more than any cache
_GEMM_SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """bytes_per_second: sequential reads by all threads; flops: float32 products, multiply and add two"""

    bytes_per_second: float
    flops: float


def measure_machine(device: torch.device | None = None, repeats: int = 9) -> MachineSpeed:
    """The best of several tries: interference only ever slows a try down."""
    device = device or torch.device("cpu")
    data = torch.ones(_READ_BYTES // 4, device=device)
    read = _best(data.sum, repeats, device)
    a = torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device)
    b = torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device)
    product = _best(lambda: a @ b, repeats, device)
    return MachineSpeed(bytes_per_second=_READ_BYTES / read, flops=2 * _GEMM_SIZE**3 / product)


def _best(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    best = float("inf")
    for _ in range(repeats + 1):  # the first warms up and is as good as any
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
