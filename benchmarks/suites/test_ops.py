"""Every op in every backend that can run here."""

from __future__ import annotations

import pytest

from stagebeam.benchmarks.suites.op_inputs import INPUTS
from stagebeam.benchmarks.suites.timing import Time
from stagebeam.kernels.registry import OPS, load, why_unavailable

BACKENDS = ("reference", "native")  # those of a CPU


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_op(op: str, backend: str, timed: Time) -> None:
    reason = why_unavailable(op, backend)
    if reason is not None:
        pytest.skip(reason)
    timed(load(op, backend), *INPUTS[op]())
