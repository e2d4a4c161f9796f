"""The CUDA C++ kernels by nvcc, where it is: the same facts as Triton's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from stagebeam.benchmarks.kernels_report.binary import mma_kind, read_resources, widest_load_bits
from stagebeam.benchmarks.kernels_report.compiling import Compiled
from stagebeam.benchmarks.kernels_report.target import TARGETS, Target
from stagebeam.benchmarks.provenance import ROOT

SOURCE = ROOT / "csrc/cuda/c_api.cu"
NVCC = os.environ.get("NVCC", "nvcc")
_ENTRY = re.compile(r"\.entry (\w+)\((.*?)(?=\.visible \.entry|\Z)", re.DOTALL)
_NAME = re.compile(r"stagebeam::cuda::(\w+_kernel)<([^>]*)>")
_NUM_WARPS = {"copy_blocks_kernel": 8, "sample_step_kernel": 32, "int8_linear_kernel": 4}
_DTYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def why_unavailable() -> str | None:
    """Why these kernels cannot be compiled here; None if they can."""
    if not SOURCE.exists():
        return f"{SOURCE} is not there: only a checkout has the sources"
    if shutil.which(NVCC) is None:
        return f"no CUDA compiler {NVCC!r}: the CUDA C++ kernels are left out"
    return None


def compile_cuda_sources() -> list[Compiled]:
    """Every kernel for every target."""
    return [kernel for target in TARGETS for kernel in _compile(target)]


def _compile(target: Target) -> list[Compiled]:
    with tempfile.TemporaryDirectory() as folder:
        command = [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-arch={target.name}"]
        command += ["-cubin", "--keep", f"--keep-dir={folder}", "-o", f"{folder}/kernels.cubin"]
        subprocess.run([*command, str(SOURCE)], check=True, capture_output=True, text=True)
        resources = read_resources(Path(folder) / "kernels.cubin")
        ptx = (Path(folder) / "c_api.ptx").read_text(encoding="utf-8")
    found = []
    for mangled, text in _ENTRY.findall(ptx):
        command = ["c++filt", mangled]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        match = _NAME.search(name)
        assert match, f"a kernel of an unknown name: {name}"
        kernel, template = match[1], match[2].replace("stagebeam::cuda::", "")
        used, num_warps = resources[mangled], _NUM_WARPS[kernel]
        first = template.split(",")[0]
        found.append(
            Compiled(
                key=f"CUDA {kernel}<{template}>",
                kernel=kernel,
                dtype=_DTYPES.get(first, first),
                target=target.name,
                num_warps=num_warps,
                registers=used.registers,
                stack_bytes=used.stack_bytes,
                shared_bytes=used.shared_bytes,
                tensor_columns=0,
                mma=mma_kind(text),
                load_bits=widest_load_bits(text),
                occupancy=target.occupancy(
                    registers=used.registers, shared_bytes=used.shared_bytes, num_warps=num_warps
                ),
            )
        )
    return found
