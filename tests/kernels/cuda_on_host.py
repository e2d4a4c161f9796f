"""The CUDA kernels on CPU tensors: csrc/cuda built with a C++ compiler for the host's grid of fibers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from stagebeam.kernels import cuda_library

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "csrc/cuda/c_api.cu", ROOT / "csrc/cuda/host/grid.cpp"]
FLAGS = ["-std=c++20", "-O2", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
COMPILER = os.environ.get("CXX", "g++")
ORDERS = ("forward", "backward", "shuffled")


def why_unavailable() -> str | None:
    return None if shutil.which(COMPILER) else f"no C++ compiler {COMPILER!r}"


@cache
def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cuda_on_host.so"
        sources = [str(source) for source in SOURCES]
        command = [COMPILER, *FLAGS, "-shared", "-fPIC", "-x", "c++", *sources, "-o", str(path)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(path))


def load(op: str, order: str = "forward") -> Callable[..., Any]:
    """The op's CUDA wrapper on CPU tensors; a block's threads take turns in this order."""
    function = getattr(import_module(f"stagebeam.kernels.{op}.cuda"), op)

    def run(*arguments: Any, **named: Any) -> Any:
        library().stagebeam_host_set_order(ORDERS.index(order))
        with mock.patch.object(cuda_library, "library", library):
            return function(*arguments, **named)

    run.num_rows = 2000  # type: ignore[attr-defined]  # fibers are slow: enough rows for a test of chance
    return run
