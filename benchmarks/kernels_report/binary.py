"""What a compiled kernel is, read from its PTX and its binary with the tools in the Triton wheel."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from triton import knobs

_RESOURCES = re.compile(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LOAD = re.compile(r"\bld(?:\.[A-Za-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[busf](\d+)\b")
_ASYNC_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S*\s[^;]*?\],\s*(0x[0-9a-f]+|\d+)")
_NOT_GLOBAL = re.compile(r"\bld\.(?:shared|param|local|const|volatile\.shared)")
_MMA = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma.sync": "mma.sync"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """A kernel's use of a multiprocessor; spills live in the stack, so 0 of it is no spill."""

    registers: int
    stack_bytes: int
    shared_bytes: int


def read_resources(cubin: Path) -> dict[str, Resources]:
    """Every kernel of a binary, by its mangled name."""
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        name: Resources(
            registers=int(registers),
            stack_bytes=int(stack) + int(local),
            shared_bytes=int(shared),
        )
        for name, registers, stack, shared, local in _RESOURCES.findall(text)
    }


def mma_kind(ptx: str) -> str:
    """The newest matrix instruction in use: tcgen05, wgmma, mma.sync, or none."""
    return next((kind for kind, text in _MMA.items() if text in ptx), "none")


def widest_load_bits(ptx: str) -> int:
    """The most bits that one instruction reads of global memory, asynchronous copies included."""
    widths = [8 * int(size, 0) for size in _ASYNC_COPY.findall(ptx)]
    if "cp.async.bulk" in ptx:
        widths.append(128)
    for line in ptx.splitlines():
        if "ld." in line and not _NOT_GLOBAL.search(line):
            widths += [int(count or 1) * int(bits) for count, bits in _LOAD.findall(line)]
    return max(widths, default=0)
