"""Which device and which number format an engine runs on, from the names that a caller gives."""

from __future__ import annotations

import torch

from stagebeam.engine.errors import InvalidInputError


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


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The format of a name; "auto" is float32 on a CPU and bfloat16 on CUDA."""
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in choices:
        raise InvalidInputError(f"dtype must be auto, {', '.join(choices)}, got {name!r}")
    return choices[name]
