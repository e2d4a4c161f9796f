"""csrc/cuda without a GPU: it compiles for the targets, and runs on the host's grid of fibers.

The ops' own tests run the kernels against the references; here is what concerns the CUDA form alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import cuda_on_host
import pytest
import torch
from sample_rows import mixed_rows

from stagebeam.kernels.int8_linear.reference import int8_linear
from stagebeam.kernels.sample_step.reference import sample_step

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("80", "90", "100")
NVCC = os.environ.get("NVCC", "nvcc")
needs_compiler = pytest.mark.skipif(
    cuda_on_host.why_unavailable() is not None, reason=str(cuda_on_host.why_unavailable())
)


@pytest.mark.skipif(shutil.which(NVCC) is None, reason=f"no CUDA compiler {NVCC!r}")
@pytest.mark.parametrize("target", TARGETS)
def test_nvcc_compiles_without_warnings_and_spills(target: str, tmp_path: Path) -> None:
    command = [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings"]
    command += ["-Xcompiler=-Wall,-Wextra,-fPIC", "-Xptxas=-v", f"-arch=sm_{target}"]
    source = ROOT / "csrc/cuda/c_api.cu"
    ran = subprocess.run(
        [*command, "-c", str(source), "-o", str(tmp_path / "c_api.o")],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    kernels = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", ran.stderr)
    assert len(kernels) == 12  # 5 words of copy_blocks, 3 formats of sample_step, 4 of int8_linear
    assert set(kernels) == {("0", "0")}
    # What __launch_bounds__ does not force: six or more blocks of int8_linear on an SM.
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", ran.stderr)]
    assert max(registers) <= 80


@needs_compiler
@pytest.mark.parametrize("order", cuda_on_host.ORDERS[1:])
def test_the_order_of_threads_does_not_matter(order: str) -> None:
    """A missing barrier shows where the threads of a block take turns otherwise."""
    arguments = mixed_rows(12, 701)
    expected = cuda_on_host.load("sample_step")(**arguments)
    for got, wanted in zip(cuda_on_host.load("sample_step", order)(**arguments), expected):
        assert torch.equal(got, wanted)
    x, scale = torch.randn(9, 272).half(), torch.rand(33)
    weight = torch.randint(-128, 128, (33, 272), dtype=torch.int8)
    assert torch.equal(
        cuda_on_host.load("int8_linear", order)(x, weight, scale),
        cuda_on_host.load("int8_linear")(x, weight, scale),
    )


@needs_compiler
@pytest.mark.parametrize("vocab_size", [1000, 1001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_two_bytes_are_read_as_they_are(dtype: torch.dtype, vocab_size: int) -> None:
    arguments = mixed_rows(24, vocab_size)
    halves = arguments["logits"].to(dtype)
    tokens, logprobs, states, finish = cuda_on_host.load("sample_step")(
        **{**arguments, "logits": halves}
    )
    wanted = sample_step(**{**arguments, "logits": halves.float()})
    assert torch.equal(tokens, wanted[0])
    torch.testing.assert_close(logprobs, wanted[1], rtol=0, atol=2e-5)
    assert torch.equal(states, wanted[2])
    assert torch.equal(finish, wanted[3])


@needs_compiler
def test_a_whole_vocabulary() -> None:
    arguments = mixed_rows(6, 128_256)
    got, wanted = cuda_on_host.load("sample_step")(**arguments), sample_step(**arguments)
    assert torch.equal(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1], rtol=0, atol=2e-5)


@needs_compiler
def test_what_a_launcher_cannot_do_is_an_error() -> None:
    op = cuda_on_host.load("int8_linear")
    memory = torch.zeros(2 * 16 + 1).half()
    weight, scale = torch.zeros(3, 16, dtype=torch.int8), torch.ones(3)
    with pytest.raises(RuntimeError, match="stagebeam_cuda_int8_linear failed with cudaError_t 1"):
        op(memory[1:].view(2, 16), weight, scale)  # not aligned to 16 bytes
    with pytest.raises(ValueError, match="multiple of 16, got 24"):
        op(torch.zeros(1, 24).half(), torch.zeros(3, 24, dtype=torch.int8), scale)
    assert torch.equal(
        op(memory[:32].view(2, 16), weight, scale),
        int8_linear(memory[:32].view(2, 16), weight, scale),
    )


@needs_compiler
def test_under_sanitizers(tmp_path: Path) -> None:
    """The kernels on exactly sized memory, in every order, with address and undefined checks."""
    program = tmp_path / "cuda_kernels"
    sources = ["tests/kernels/cuda_kernels_test.cpp", "csrc/cuda/host/grid.cpp"]
    sources += ["csrc/core/sampler.cpp", "csrc/tests/main.cpp"]
    flags = [
        *cuda_on_host.FLAGS,
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    built = subprocess.run(
        [cuda_on_host.COMPILER, *flags, "-I", str(ROOT / "csrc"), *sources, "-o", str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"{cuda_on_host.COMPILER} has no sanitizers here")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 failed checks" in ran.stdout
