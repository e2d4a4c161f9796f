"""What the tests of every op share: the op in each backend, the tolerance table, a poisoned cache.

A test module names its op in `OP`; a test that takes `op` runs once a backend that is present, and
once with the CUDA kernel on the host's grid of fibers where the op has one.
The Triton backend's turn is a process of its own (test_in_the_interpreter.py) or a GPU's.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stagebeam.kernels import registry


def _load(name: str) -> Any:
    """A module beside this file, importable by its name (tests are not a package)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cuda_on_host = _load("cuda_on_host")
sample_rows = _load("sample_rows")
prefill_rows = _load("prefill_rows")
on_device = _load("on_device")
bounds = _load("bounds")

# Largest error allowed, as a share of the largest exact magnitude: some tens of roundings.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 4e-6,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "op" not in metafunc.fixturenames:
        return
    name = metafunc.module.OP
    cases = []
    for backend in registry.backends():
        reason = registry.why_unavailable(name, backend)
        if reason is None:
            function = registry.load(name, backend)
            if on_device.has_device(backend):
                function = on_device.on_device(function, "cuda")
            elif backend == "triton":
                function.num_rows = 4000  # interpreted: enough rows for a test of chance
            cases.append(pytest.param(function, id=backend))
        elif backend != "triton" and not reason.startswith("not implemented"):
            skip = pytest.mark.skip(reason=f"{backend} cannot run {name}: {reason}")
            cases.append(pytest.param(None, id=backend, marks=skip))
    if not (registry.why_unavailable(name, "cuda") or "").startswith("not implemented"):
        reason = cuda_on_host.why_unavailable()
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        cases.append(pytest.param(cuda_on_host.load(name), id="cuda-on-host", marks=marks))
    metafunc.parametrize("op", cases)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def triton_bounds() -> Any:
    return bounds


@pytest.fixture(autouse=True)
def _no_interpreted_kernel_leaves_its_tensors() -> Iterator[None]:
    launching = sys.modules.get("stagebeam.kernels.triton_launch")
    if launching is None or not launching.INTERPRETED:
        yield
        return
    with bounds.checked():
        yield


def widen(value: Any) -> Any:
    """float64 copies of floating tensors, copies of the others."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(widen(item) for item in value)
    return value


def assert_close(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == exact.shape
    if exact.numel() == 0:
        return
    assert bool(got.isfinite().all()), "NaN or infinity in the result"
    error = (got.double() - exact).abs().max()
    assert error <= TOLERANCE[dtype] * exact.abs().max().clamp(min=1e-3), f"error {error:.3g}"


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """check(op, naive, *args): compare a pure op's output with two float64 oracles.

    The reference in float64 must equal `naive`, a plain transcription; the op's error must be within
    the table and at most twice the reference's own in that dtype, plus 1e-6 of the scale.
    """
    reference = registry.load(request.module.OP, "reference")

    def run(op: Callable[..., Tensor], naive: Callable[..., Tensor], *args: Any) -> Tensor:
        dtype = next(arg.dtype for arg in args if isinstance(arg, Tensor))
        exact = reference(*widen(args))
        assert exact.dtype == torch.float64
        assert_close(exact, naive(*widen(args)), torch.float64)
        got, own = op(*args), reference(*args)
        assert_close(got, exact, dtype)
        if exact.numel():
            allowed = 2 * (own.double() - exact).abs().max() + 1e-6 * exact.abs().max()
            assert (got.double() - exact).abs().max() <= allowed
        return got

    return run


class Paged(NamedTuple):
    """Sequences in a paged cache whose every other position holds NaN."""

    k_cache: Tensor
    v_cache: Tensor
    tables: list[list[int]]

    def table(self, first: int = 0, seqs: list[int] | None = None, pad: int = 0) -> Tensor:
        """Block tables from block `first` on, padded with -1 to the longest plus `pad`."""
        rows = [table[first:] for table in self.tables]
        rows = [rows[seq] for seq in seqs] if seqs is not None else rows
        return pad_tables(rows, pad)


def pad_tables(rows: list[list[int]], pad: int = 0) -> Tensor:
    width = max((len(row) for row in rows), default=0) + pad
    padded = [row + [-1] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int32).view(len(rows), width)


@pytest.fixture
def paged() -> Callable[..., Paged]:
    """paged(keys, values, block_size): store each sequence [L, Hkv, D] in shuffled blocks."""

    def build(keys: list[Tensor], values: list[Tensor], block_size: int) -> Paged:
        counts = [-(-len(key) // block_size) for key in keys]
        num_blocks = sum(counts) + 3
        ids = torch.randperm(num_blocks).tolist()
        shape = (num_blocks, block_size, *keys[0].shape[1:])
        k_cache = torch.full(shape, torch.nan, dtype=keys[0].dtype)
        v_cache = k_cache.clone()
        tables = []
        for key, value, count in zip(keys, values, counts):
            table = [ids.pop() for _ in range(count)]
            for i, block in enumerate(table):
                part = slice(i * block_size, (i + 1) * block_size)
                k_cache[block, : len(key[part])] = key[part]
                v_cache[block, : len(key[part])] = value[part]
            tables.append(table)
        return Paged(k_cache, v_cache, tables)

    return build
