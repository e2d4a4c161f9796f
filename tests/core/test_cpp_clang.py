"""The native kernels of each instruction set compile with clang, for this processor's family and for ARM's.

clang is on the PATH or comes with the package `ziglang`.
"""

import importlib.util
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc/cpu"
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Werror"]
X86 = [
    *("isa", "thread_pool", "linear_avx2", "linear_avx512", "linear_bf16", "linear_vnni"),
    *("linear_gfni", "linear_amx", "linear_amx_integers", "attention_bf16", "attention_amx"),
    *("kernels_avx2", "kernels_avx512"),
]
ARM = ["isa", "thread_pool", "linear_neon", "kernels_generic", "attention"]


def compiler() -> list[str]:
    """A clang that compiles for both families' Linux; empty where there is none."""
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    clang = shutil.which("clang++")
    return [clang] if clang else []


@pytest.mark.parametrize(
    ("target", "parts"), [("x86_64-linux-gnu", X86), ("aarch64-linux-gnu", ARM)]
)
def test_each_instruction_set_compiles_with_clang(
    target: str, parts: list[str], tmp_path: Path
) -> None:
    clang = compiler()
    if not clang:
        pytest.skip("no clang++, and no package ziglang")
    command = [*clang, f"--target={target}", *FLAGS, "-c"]
    (tmp_path / "empty.cpp").write_text("#include <vector>\n")
    if compile_one(command, tmp_path / "empty.cpp", tmp_path):
        pytest.skip(f"clang has no C++ library for {target}")
    with ThreadPoolExecutor(max_workers=2) as jobs:
        sources = [SOURCES / f"{part}.cpp" for part in parts]
        failures = jobs.map(lambda source: compile_one(command, source, tmp_path), sources)
    assert not list(filter(None, failures))


def compile_one(command: list[str], source: Path, folder: Path) -> str:
    """What the compiler says where it refuses."""
    target = folder / f"{source.stem}.o"
    done = subprocess.run(
        [*command, str(source), "-o", str(target)], capture_output=True, text=True
    )
    return f"{source.name}:\n{done.stderr}" if done.returncode else ""
