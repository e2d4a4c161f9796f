"""Calls of native kernels in a process of their own, for a tool that counts their instructions.

Run by path, `python kernel_calls.py EXTENSION KERNEL:FORMAT:ROWS ...`: it loads the extension module
alone, since importing the package (and PyTorch) takes minutes under such a tool, and calls `active_isa`
after each kernel, which the tool takes for a mark. Sizes are SmolLM2-135M's: its gate-up product, and
one layer's attention to a trunk of 512 tokens.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader
from typing import Any

import numpy as np

HIDDEN, WIDE, HEADS, KV_HEADS, HEAD_DIM = 576, 3072, 9, 3, 64
BLOCK, TRUNK, TAIL = 16, 512, 32


def load(path: str) -> Any:
    loader = ExtensionFileLoader("_cpu", path)
    spec = importlib.util.spec_from_loader("_cpu", loader)
    assert spec is not None, "a loader is given"
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def linear(cpu: Any, weight_format: str, rows: int) -> None:
    matrix = cpu.PackedMatrix(WIDE, HIDDEN, weight_format)
    matrix.pack_rows(0, np.ones((WIDE, HIDDEN), np.float32))
    cpu.linear(cpu.ThreadPool(1), matrix, np.ones((rows, HIDDEN), np.float32))


def attention(cpu: Any, cache_format: str, rows: int) -> None:
    """Rows that share the trunk and have tails of their own."""
    trunk_blocks, tail_blocks = TRUNK // BLOCK, TAIL // BLOCK
    num_blocks = trunk_blocks + rows * tail_blocks
    width = 4 if cache_format == "float32" else 2
    cache = [np.zeros(num_blocks * BLOCK * KV_HEADS * HEAD_DIM * width, np.uint8) for _ in range(2)]
    q = np.ones((rows, HEADS, HEAD_DIM), np.float32)
    out = np.empty((rows, HEADS * HEAD_DIM), np.float32)
    blocks = np.arange(num_blocks, dtype=np.int32)
    tables = blocks[:trunk_blocks].copy(), blocks[trunk_blocks:].copy()
    offsets = np.array([0, rows], np.int32)
    trunk_lens, tail_lens = np.full(1, TRUNK, np.int32), np.full(rows, TAIL, np.int32)
    cpu.branch_attention(
        *(q.ctypes.data, HEADS * HEAD_DIM, cache[0].ctypes.data, cache[1].ctypes.data),
        *(out.ctypes.data, cpu.CACHE_FORMATS[cache_format], BLOCK, HEADS, KV_HEADS, HEAD_DIM),
        *(HEAD_DIM**-0.5, rows, 1, offsets.ctypes.data, tables[0].ctypes.data, trunk_blocks),
        *(trunk_lens.ctypes.data, tables[1].ctypes.data, tail_blocks, tail_lens.ctypes.data),
    )


CALLS = {"linear": linear, "attention": attention}

if __name__ == "__main__":
    module = load(sys.argv[1])
    for case in sys.argv[2:]:
        kernel, name, num_rows = case.split(":")
        CALLS[kernel](module, name, int(num_rows))
        module.active_isa()
