"""Every op's tests again with the Triton kernels, run by Triton's interpreter on the CPU.

TRITON_INTERPRET must be set before a kernel is defined, so they run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def test_the_kernels_agree_with_the_oracle_in_the_interpreter() -> None:
    pytest.importorskip(
        "triton", reason="triton is not installed (pip install 'stagebeam[triton]')"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "triton", str(FOLDER)]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--ignore={__file__}"],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
