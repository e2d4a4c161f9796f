"""The compiled CUDA kernels (csrc/cuda) behind their C interface, loaded with ctypes.

Knows pointers and formats, no op. A call is queued on the tensors' current stream and not waited for.
The same interface built for the host's grid of fibers takes its place in tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import stagebeam.bindings

PATH = Path(stagebeam.bindings.__file__).with_name("libstagebeam_cuda.so")
FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def why_unavailable() -> str | None:
    """The reason in words why the kernels cannot run here; None if they can."""
    if not PATH.exists():
        return (
            "csrc/cuda is not built; installing stagebeam builds it where nvcc and a CUDA torch are"
        )
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(PATH))


def call(function: str, *arguments: object, on: Tensor) -> None:
    """Queue `function` on `on`'s stream; RuntimeError with the number of a cudaError_t."""
    is_cuda = on.device.type == "cuda"
    stream = torch.cuda.current_stream(on.device).cuda_stream if is_cuda else 0
    status = getattr(library(), function)(*arguments, ctypes.c_void_p(stream))
    if status:
        raise RuntimeError(f"{function} failed with cudaError_t {status}")


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """The address of a contiguous tensor's first element."""
    assert tensor.is_contiguous(), f"a kernel needs a contiguous tensor, got {tensor.stride()}"
    return ctypes.c_void_p(tensor.data_ptr())


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """The addresses of contiguous tensors as a C array."""
    return (ctypes.c_void_p * len(tensors))(*(pointer(tensor).value for tensor in tensors))
