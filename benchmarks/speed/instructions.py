"""Instructions of the native kernels, counted by `valgrind --tool=callgrind`.

Counts do not vary with the machine's load, so that a kernel that became longer shows. valgrind knows no
AVX-512: what it counts are the AVX2 kernels.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.speed import kernel_calls
from stagebeam.bindings import _cpu

# What is counted: the calls from here on down.
FUNCTIONS = {
    "linear": "stagebeam::linear_part(*",
    "attention": "stagebeam::cpu::AttentionPlan::run_item(*",
}
CASES = [
    *(("linear", name, rows) for name in ("float32", "bf16", "int8", "int4") for rows in (1, 8)),
    *(("attention", name, rows) for name in ("float32", "bfloat16") for rows in (1, 8)),
]
_TIMEOUT = 300


def count(kernel: str, name: str, rows: int) -> int:
    """Instructions of one call of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"),
                f"--toggle-collect={FUNCTIONS[kernel]}",
                *(sys.executable, kernel_calls.__file__, _cpu.__file__, kernel, name, str(rows)),
            ],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT,
        )
        totals = re.search(r"^(?:totals|summary): (\d+)", out.read_text(), re.MULTILINE)
    assert totals is not None, "callgrind always writes its totals"
    return int(totals[1])


def instructions() -> dict[str, Any]:
    """Counts of all cases, or why there are none."""
    if shutil.which("valgrind") is None:
        return {"skipped": "valgrind is not installed"}
    counts = {
        f"{kernel} {name}, {rows} rows": count(kernel, name, rows) for kernel, name, rows in CASES
    }
    return {"instructions": counts}
