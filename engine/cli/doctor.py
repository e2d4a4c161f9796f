"""`stagebeam doctor`: what this machine and this installation can do, and why not more."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from typing import Any

import torch

from stagebeam.bindings import _cpu
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.cli.options import add_model_options, make_engine
from stagebeam.engine.engine import Engine
from stagebeam.engine.machine import cpu_name, num_cores, package_versions
from stagebeam.engine.memory.plan import GIB, free_memory_bytes
from stagebeam.kernels.registry import table

_PACKAGES = ("stagebeam", "torch", "transformers", "safetensors", "triton", "flash-attn")
_TOOLS = ("g++", "nvcc", "cmake", "clang-format")


def add_doctor_parser(commands: Any) -> None:
    """`stagebeam doctor`."""
    parser = commands.add_parser("doctor", help="show what this installation can do")
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> int:
    """Print versions, devices, tools, kernels and the checkpoint's memory report."""
    report = examine(options)
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    for section, content in report.items():
        print(f"{section}")
        for line in _lines(content):
            print(f"  {line}")
    return 0


def examine(options: argparse.Namespace) -> dict[str, Any]:
    """The report as plain data; a checkpoint that does not load is a reason in words."""
    cpu = torch.device("cpu")
    devices = {
        "cpu": f"{cpu_name()}, {num_cores()} cores, {free_memory_bytes(cpu) / GIB:.1f} GiB free"
    }
    for i in range(torch.cuda.device_count()):
        devices[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    if not torch.cuda.is_available():
        devices["cuda"] = "none: this torch sees no CUDA device"
    kernels: dict[str, dict[str, str]] = {}
    for row in table():
        kernels.setdefault(row.op, {})[row.backend] = row.reason or "available"
    return {
        "versions": package_versions(_PACKAGES),
        "devices": devices,
        "torch threads": torch.get_num_threads(),
        "tools": {tool: shutil.which(tool) or "not found" for tool in _TOOLS},
        "kernels": kernels,
        "checkpoint": _checkpoint(options),
    }


def _checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    try:
        with make_engine(options) as engine:
            spec = engine.spec
            return {
                "path": str(engine.path),
                "architecture": spec.architecture,
                "parameters": spec.num_parameters,
                "dtype": engine.dtype,
                "kv cache dtype": engine.kv_cache_dtype,
                "decode": _decode(engine),
                "memory": engine.memory.report().splitlines(),
                "stages": [stage.name for stage in engine.plan.stages],
            }
    except ValueError as error:
        return {"path": str(options.model or BUNDLED_CHECKPOINT), "error": str(error)}


def _decode(engine: Engine) -> dict[str, Any]:
    """What decodes, and on the native backend the least time that reading the weights takes."""
    model = engine.native_model
    if model is None:
        return {"by": f"PyTorch with the {engine.backend} kernels"}
    program = model.program
    num_threads = program.num_threads
    gigabytes_a_second = _cpu.read_bandwidth(_cpu.ThreadPool(num_threads))
    num_bytes = program.decode_bytes(engine.spec.num_cross_layers > 0)
    return {
        "by": "the native program",
        "instruction set": _cpu.active_isa(),
        "threads": num_threads,
        "read bandwidth": f"{gigabytes_a_second:.1f} GB/s",
        "weights a step": f"{num_bytes / 1e6:.1f} MB in {engine.dtype}",
        "floor": f"{num_bytes / gigabytes_a_second / 1e6:.3f} ms a step",
    }


def _lines(content: Any) -> list[str]:
    if isinstance(content, Mapping):
        lines = []
        for name, value in content.items():
            if isinstance(value, (Mapping, list)):
                lines += [str(name), *(f"  {line}" for line in _lines(value))]
            else:
                lines.append(f"{name:<18} {value}")
        return lines
    if isinstance(content, list):
        return [str(item) for item in content]
    return [str(content)]
