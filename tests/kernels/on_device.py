"""An op on another device than its test's tensors: moved there, and what was written moved back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICE_BACKENDS = ("triton", "cuda", "flash_attn")


def moved(value: Any, device: str) -> Any:
    """Copies of all tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    return value


def write_back(value: Any, copy: Any) -> None:
    """Give a test's tensors what the op wrote to their copies."""
    if isinstance(value, Tensor):
        written = copy.to(value.device)
        is_same = (written == value) | ((written != written) & (value != value))
        if not bool(is_same.all()):
            value.copy_(written)
    elif isinstance(value, (list, tuple)):
        for item, item_copy in zip(value, copy):
            write_back(item, item_copy)


def on_device(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """`function` for tensors of the CPU; results come back there."""

    def run(*arguments: Any, **named: Any) -> Any:
        copies = moved(arguments, device)
        named_copies = {name: moved(value, device) for name, value in named.items()}
        result = function(*copies, **named_copies)
        write_back(arguments, copies)
        return moved(result, "cpu")

    return run


def has_device(backend: str) -> bool:
    """Whether a backend's kernels run on a GPU here."""
    return backend in DEVICE_BACKENDS and torch.cuda.is_available()
