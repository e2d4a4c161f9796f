"""The C ABI over a scripted engine, no Python in it: under TSan, and under ASan with UBSan."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-pthread", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_c_abi_over_a_scripted_engine(sanitizer: str, tmp_path: Path) -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler {COMPILER!r}")
    command = [COMPILER, *FLAGS, *SANITIZERS[sanitizer]]
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    empty = subprocess.run([*command, "empty.cpp", "-o", "empty"], cwd=tmp_path, check=False)
    if empty.returncode or subprocess.run([tmp_path / "empty"], check=False).returncode:
        pytest.skip(f"{COMPILER} has no {sanitizer} sanitizer here")
    sources = [
        *sorted(ROOT.glob("csrc/embed/*.cpp")),
        *sorted(ROOT.glob("tests/embedding/cpp/*.cpp")),
        ROOT / "csrc" / "tests" / "main.cpp",
        ROOT / "bindings" / "c" / "stagebeam.cpp",
    ]
    program = tmp_path / "c_abi_tests"
    built = subprocess.run(
        [*command, *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 failed checks" in ran.stdout
