"""The C++ core's own test program, built and run under AddressSanitizer and UBSan."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O0", "-g1", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def sanitized_compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler {COMPILER!r}")
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "empty.cpp").write_text("int main() {}\n")
    command = [COMPILER, *FLAGS, *SANITIZERS]
    linked = subprocess.run(
        [*command, "empty.cpp", "-o", "empty"], cwd=folder, capture_output=True, text=True
    )
    if linked.returncode or subprocess.run([folder / "empty"], capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no address and undefined-behaviour sanitizers here")
    return command


def test_cpp_core_under_sanitizers(sanitized_compiler: list[str], tmp_path: Path):
    sources = sorted([*ROOT.glob("csrc/core/*.cpp"), *ROOT.glob("csrc/tests/*.cpp")])
    jobs = [
        subprocess.Popen(
            [*sanitized_compiler, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for source in sources
    ]
    for source, job in zip(sources, jobs, strict=True):
        _, errors = job.communicate()
        assert job.returncode == 0, f"{source.name}:\n{errors}"
    program = tmp_path / "core_tests"
    objects = [str(tmp_path / f"{source.stem}.o") for source in sources]
    subprocess.run([*sanitized_compiler, *objects, "-o", str(program)], check=True)
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 failed checks" in ran.stdout
