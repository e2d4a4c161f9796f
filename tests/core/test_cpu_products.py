"""Packed weights and their products through the bindings, against PyTorch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from stagebeam.bindings import _cpu

FORMATS = ["float32", "bf16", "int8", "int4"]


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest):
    before = _cpu.active_isa()
    _cpu.set_active_isa(request.param)
    yield request.param
    _cpu.set_active_isa(before)


def rounded_in_torch(weights: torch.Tensor, weight_format: str) -> torch.Tensor:
    """The same format's rounding with float32 scales."""
    if weight_format == "float32":
        return weights
    if weight_format == "bf16":
        return weights.bfloat16().float()
    groups = weights.unflatten(1, (-1, 32))
    if weight_format == "int8":
        scale = groups.abs().amax(-1, keepdim=True) / 127
        return ((groups / scale).round() * scale).flatten(1)
    least = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1, keepdim=True) - least) / 15
    return (((groups - least) / step).round() * step + least).flatten(1)


def packed(weights: torch.Tensor, weight_format: str, **options: bool) -> _cpu.PackedMatrix:
    matrix = _cpu.PackedMatrix(*weights.shape, weight_format, **options)
    matrix.pack_rows(0, weights.numpy())
    return matrix


@pytest.mark.parametrize("weight_format", FORMATS)
def test_error_is_within_twice_that_of_the_rounding_in_torch(isa: str, weight_format: str):
    torch.manual_seed(0)
    weights, x = torch.randn(96, 320) * 0.05, torch.randn(9, 320)
    exact = x.double() @ weights.double().T
    expected = x.double() @ rounded_in_torch(weights, weight_format).double().T
    out = torch.from_numpy(
        _cpu.linear(_cpu.ThreadPool(2), packed(weights, weight_format), x.numpy())
    )
    error = (out - exact).square().mean().sqrt()
    limit = 2 * (expected - exact).square().mean().sqrt() + 1e-6 * exact.abs().max()
    assert error <= limit


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_is_the_same_alone_and_among_32(isa: str, weight_format: str):
    torch.manual_seed(1)
    matrix = packed(torch.randn(70, 129), weight_format)
    x = torch.randn(32, 129).numpy()
    together = _cpu.linear(_cpu.ThreadPool(1), matrix, x)
    for threads in (1, 2, 3):
        pool = _cpu.ThreadPool(threads)
        for row in range(32):
            alone = _cpu.linear(pool, matrix, x[row : row + 1])
            assert (alone == together[row]).all()


def test_narrow_sources_and_row_ranges_pack_alike():
    torch.manual_seed(2)
    weights = torch.randn(40, 64).bfloat16()
    whole = packed(weights.float(), "int8").unpack_rows(0, 40)
    pieces = _cpu.PackedMatrix(40, 64, "int8")
    bits = weights.view(torch.uint16).numpy()
    for first in range(0, 40, 7):
        pieces.pack_rows(first, bits[first : first + 7])
    assert (pieces.unpack_rows(0, 40) == whole).all()
    halves = _cpu.PackedMatrix(40, 64, "float32")
    halves.pack_rows(0, weights.half().numpy())
    assert (halves.unpack_rows(0, 40) == weights.half().float().numpy()).all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_residual_and_gate_up_are_fused(isa: str, weight_format: str):
    torch.manual_seed(3)
    weights, x = torch.randn(60, 48), torch.randn(5, 48)
    pool = _cpu.ThreadPool(2)
    plain = torch.from_numpy(_cpu.linear(pool, packed(weights, weight_format), x.numpy()))
    residual = torch.randn(5, 60)
    added = _cpu.linear(pool, packed(weights, weight_format), x.numpy(), residual.numpy(), 0.5)
    torch.testing.assert_close(torch.from_numpy(added), residual + 0.5 * plain)
    gated = _cpu.linear(pool, packed(weights, weight_format, is_gate_up=True), x.numpy())
    gate, up = plain.chunk(2, dim=1)
    torch.testing.assert_close(torch.from_numpy(gated), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((4, 4, "int3"), "weight format"), ((-1, 4, "bf16"), "at least 0")],
)
def test_wrong_sizes_and_formats_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        _cpu.PackedMatrix(*arguments)


def test_wrong_arrays_are_refused():
    matrix, pool = _cpu.PackedMatrix(4, 8, "int8"), _cpu.ThreadPool(1)
    with pytest.raises(ValueError, match=r"shape \[rows, 8\]"):
        _cpu.linear(pool, matrix, np.zeros((2, 7), np.float32))
    with pytest.raises(ValueError, match="not all in a matrix of 4 rows"):
        matrix.pack_rows(3, np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match="float32, float16, or uint16"):
        matrix.pack_rows(0, np.zeros((2, 8)))
    with pytest.raises(ValueError, match="nan in row 1"):
        matrix.pack_rows(1, np.full((1, 8), np.nan, np.float32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_pool_refuses_to_run_after_a_fork():
    program = """
import os, numpy as np
from stagebeam.bindings import _cpu
pool, matrix = _cpu.ThreadPool(2), _cpu.PackedMatrix(64, 8, "bf16")
_cpu.linear(pool, matrix, np.zeros((1, 8), np.float32))
child = os.fork()
if child == 0:
    try:
        _cpu.linear(pool, matrix, np.zeros((1, 8), np.float32))
    except RuntimeError as error:
        os._exit(0 if "before a fork" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_environment_chooses_the_instruction_set():
    program = "from stagebeam.bindings import _cpu; print(_cpu.active_isa())"
    for name in _cpu.available_isas():
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "STAGEBEAM_ISA": name},
            capture_output=True,
            text=True,
        )
        assert ran.stdout.strip() == name, ran.stderr
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "STAGEBEAM_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert 'unknown instruction set "mmx"' in ran.stderr


def test_read_bandwidth_is_a_rate():
    assert _cpu.read_bandwidth(_cpu.ThreadPool(1), num_bytes=1 << 20, repeats=1) > 0
    with pytest.raises(ValueError, match="read_bandwidth"):
        _cpu.read_bandwidth(_cpu.ThreadPool(1), num_bytes=0)
