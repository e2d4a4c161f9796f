"""Which device and which number formats an engine runs on, from the names that a caller gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stagebeam.bindings import _cpu
from stagebeam.engine.errors import InvalidInputError

_TORCH = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
TORCH_FORMATS = ("float32", "bfloat16", "float16")  # PyTorch's own products
NATIVE_FORMATS = ("float32", "bfloat16", "int8", "int4")  # the step program's packed weights
NATIVE_KV_FORMATS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The formats of an engine's weights and caches, and what multiplies them.

    weights:   a name of TORCH_FORMATS or NATIVE_FORMATS
    kv_cache:  of cached keys and values; int8 has a scale a head and token
    is_native: csrc/cpu's step program runs the text model, else PyTorch with the resolved ops
    """

    weights: str
    kv_cache: str
    is_native: bool

    @property
    def model_dtype(self) -> torch.dtype:
        """Of a PyTorch model's weights."""
        return _TORCH[self.weights]

    @property
    def kv_dtype(self) -> torch.dtype:
        return _TORCH[self.kv_cache]


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU. InvalidInputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"device must be auto, cpu or cuda[:n], got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device must be auto, cpu or cuda[:n], got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("device 'cuda' was asked for but torch sees no CUDA device")
    return device


def pick_precision(
    dtype: str,
    kv_cache_dtype: str,
    device: torch.device,
    backend: str,
    *,
    tensor_parallel: bool = False,
) -> Precision:
    """The formats of these names; InvalidInputError where nothing here runs them.

    On a CPU the step program runs every model but one in float16, one of which this process holds
    a part (its sums over the ranks are PyTorch's), and one of a backend that was chosen by name.
    "auto" weights are bfloat16 there and on CUDA, float32 where PyTorch runs on a CPU.
    """
    names = tuple(dict.fromkeys((*TORCH_FORMATS, *NATIVE_FORMATS)))
    if dtype not in ("auto", *names):
        raise InvalidInputError(f"dtype must be auto, {', '.join(names)}, got {dtype!r}")
    has_program = device.type == "cpu" and backend in ("auto", "native") and not tensor_parallel
    is_native = has_program and (dtype != "float16" or backend == "native")
    formats = NATIVE_FORMATS if is_native else TORCH_FORMATS
    if dtype == "auto":
        dtype = "bfloat16" if is_native or device.type == "cuda" else "float32"
    if dtype not in formats:
        where = "the native backend's formats are" if is_native else "PyTorch's formats are"
        why = (
            ""
            if is_native
            else ": packed weights need a CPU, backend auto or native, and no tensor_parallel"
        )
        raise InvalidInputError(f"{where} {', '.join(formats)}, got dtype {dtype!r}{why}")
    if not is_native:
        if kv_cache_dtype not in ("auto", dtype):
            raise InvalidInputError(
                f"PyTorch's products need a KV cache in the weights' {dtype}, got kv_cache_dtype "
                f"{kv_cache_dtype!r}; leave it at auto"
            )
        kv_cache_dtype = dtype
    elif kv_cache_dtype == "auto":
        kv_cache_dtype = "float32" if dtype == "float32" else "bfloat16"
    elif kv_cache_dtype not in NATIVE_KV_FORMATS:
        raise InvalidInputError(
            f"kv_cache_dtype must be auto, {', '.join(NATIVE_KV_FORMATS)}, got {kv_cache_dtype!r}"
        )
    return Precision(weights=dtype, kv_cache=kv_cache_dtype, is_native=is_native)


def pick_num_threads(num_threads: int | None) -> int:
    """Threads of the step program; None is what PyTorch would take (so OMP_NUM_THREADS and
    `torch.set_num_threads` hold), at most one a physical core within the control groups' limits."""
    if num_threads is not None:
        return num_threads
    return min(_cpu.default_num_threads(), torch.get_num_threads())
