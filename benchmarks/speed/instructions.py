"""Instructions of the native kernels, counted by `valgrind --tool=callgrind`.

Counts do not vary with the machine's load, so that a kernel that became longer shows. valgrind knows no
AVX-512, so the AVX2 kernels are counted on any machine; another compiler gives other counts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.speed import kernel_calls
from stagebeam.bindings import _cpu

ISA = "avx2"
# What is counted: the calls from here on down.
FUNCTIONS = ("stagebeam::linear_part(*", "stagebeam::cpu::AttentionPlan::run_items(*")
# What `active_isa` calls and no kernel does: it ends a case's counts.
MARK = "stagebeam::isa_name(*"
# Kernel:format:rows, one row and eight branches.
CASES = [
    *(f"linear:{name}:{rows}" for name in ("float32", "bf16", "int8", "int4") for rows in (1, 8)),
    *(f"attention:{name}:{rows}" for name in ("float32", "bfloat16") for rows in (1, 8)),
]
_TIMEOUT = 300
_COMPILER = rb"(?:GCC: \([^)]*\)|clang version) [\d.]+"


def missing() -> str | None:
    """Why nothing can be counted here; None where it can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if ISA not in _cpu.available_isas():
        return f"this processor has no {ISA}"
    return None


def compiler() -> str:
    """The extension's, as it wrote it there; counts of another are others."""
    names = re.search(_COMPILER, Path(_cpu.__file__).read_bytes())
    return names[0].decode() if names else "unknown"


def count(cases: Sequence[str]) -> dict[str, int]:
    """Instructions of one call of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"),
                *(f"--toggle-collect={function}" for function in FUNCTIONS),
                f"--dump-before={MARK}",
                *(sys.executable, kernel_calls.__file__, _cpu.__file__, *cases),
            ],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT,
            env=os.environ | {"STAGEBEAM_ISA": ISA},
        )
        parts = [Path(f"{out}.{number}").read_text() for number in range(1, len(cases) + 1)]
    totals = [re.search(r"^totals: (\d+)", part, re.MULTILINE) for part in parts]
    counts = {case: int(total[1]) for case, total in zip(cases, totals, strict=True) if total}
    empty = [case for case in cases if not counts.get(case)]
    if empty:
        raise RuntimeError(f"no instructions of {empty}: has one of {FUNCTIONS} another name?")
    return counts


def instructions() -> dict[str, Any]:
    """Counts of all cases, or why there are none."""
    reason = missing()
    if reason is not None:
        return {"skipped": reason}
    return {"isa": ISA, "compiler": compiler(), "instructions": count(CASES)}
