"""The native backend's bottom layer: its C++ test program under sanitizers."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O0", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
PARTS = [
    "aligned_memory",
    "bandwidth",
    "cpu_count",
    "isa",
    "packed_matrix",
    "thread_pool",
    "linear",
    "linear_scalar",
    "linear_neon",
    "linear_avx2",
    "linear_avx512",
    "linear_vnni",
    "linear_gfni",
    "linear_bf16",
    "linear_amx",
    "linear_amx_integers",
    "attention",
    "attention_amx",
    "attention_bf16",
    "attention_plan",
    "decode_steps",
    "kernels",
    "kernels_avx2",
    "kernels_avx512",
    "kernels_generic",
    "sample",
    "step_program",
    "weight_streams",
]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_cpu_products_and_threads_under_sanitizers(sanitizers: str, tmp_path: Path):
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler {COMPILER!r}")
    command = [COMPILER, *FLAGS, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    linked = subprocess.run(
        [*command, "empty.cpp", "-o", "empty"], cwd=tmp_path, capture_output=True, text=True
    )
    if linked.returncode or subprocess.run([tmp_path / "empty"], capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no sanitizers {sanitizers} that run here")
    sources = [ROOT / "csrc/cpu" / f"{part}.cpp" for part in PARTS]
    sources += [ROOT / "csrc/tests/main.cpp"]
    sources += [
        ROOT / "csrc/tests/cpu" / f"{part}_test.cpp"
        for part in ("attention", "linear", "thread_pool", "cpu_count", "decode_steps")
    ]
    objects = [str(tmp_path / f"{source.stem}.o") for source in sources]

    def compile_one(source: Path, target: str) -> str:
        done = subprocess.run(
            [*command, "-c", str(source), "-o", target], capture_output=True, text=True
        )
        return f"{source.name}:\n{done.stderr}" if done.returncode else ""

    with ThreadPoolExecutor(max_workers=2) as jobs:
        failures = [text for text in jobs.map(compile_one, sources, objects) if text]
    assert not failures, "\n".join(failures)
    program = tmp_path / "cpu_tests"
    subprocess.run([*command, *objects, "-pthread", "-o", str(program)], check=True)
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 failed checks" in ran.stdout
