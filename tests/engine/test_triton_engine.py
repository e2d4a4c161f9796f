"""A whole engine on the Triton kernels, interpreted on the CPU: the reference's tokens and verdicts.

TRITON_INTERPRET must be set before a kernel is defined, so it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagebeam import Engine
from stagebeam.kernels.registry import BackendUnavailableError

RUN = Path(__file__).with_name("backend_run.py")


def told(*arguments: str) -> dict[str, Any]:
    """What backend_run.py decided; reference in this environment, Triton in its interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(RUN), *arguments],
        cwd=RUN.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_phase_decides_as_the_reference() -> None:
    """Image prefill, a fork into 4, 16 steps (8 at a time, as on CUDA), a judge round, a commit."""
    pytest.importorskip(
        "triton", reason="triton is not installed (pip install 'stagebeam[triton]')"
    )
    expected, got = told("reference"), told("triton", "8")
    assert len({tuple(tokens) for tokens in expected["tokens"]}) > 1, "the candidates must differ"
    assert all(len(tokens) == 16 for tokens in expected["tokens"])
    assert any(abs(verdict - 0.5) > 1e-3 for verdict in expected["verdicts"])
    assert got["tokens"] == expected["tokens"]
    assert got["committed"] == expected["committed"]
    assert got["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-3)
    assert got["verdicts"] == pytest.approx(expected["verdicts"], abs=1e-3)


def test_without_a_gpu_and_the_interpreter_the_reason_is_told() -> None:
    launch = pytest.importorskip("stagebeam.kernels.triton_launch", exc_type=ImportError)
    if launch.why_unavailable() is None:
        pytest.skip("Triton kernels can run in this process")
    with pytest.raises(
        BackendUnavailableError, match=r"sample_step: needs a CUDA device \(or TRITON"
    ):
        Engine(backend="triton", device="cpu")
