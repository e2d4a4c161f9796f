"""The registry: what is found, what is refused and in which words."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stagebeam.kernels import registry

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """plant(op, module, **names): a module in an op's folder, for one test."""

    def put(op: str, module: str, **names: Any) -> None:
        name = f"stagebeam.kernels.{op}.{module}"
        fake = ModuleType(name)
        fake.__spec__ = ModuleSpec(name, None)
        vars(fake).update(names)
        monkeypatch.setitem(sys.modules, name, fake)

    _forget()
    yield put
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for cached in (registry.load, registry.resolve, registry._has_module, registry._module):
        cached.cache_clear()


def test_every_folder_is_an_op_with_a_contract_and_a_reference() -> None:
    folders = {path.parent.name for path in KERNELS.glob("*/reference.py")}
    assert folders == {*registry.OPS, *registry.OPTIONAL_OPS}
    for op in folders:
        assert registry.why_unavailable(op, "reference") is None
        contract = (KERNELS / op / "__init__.py").read_text()
        assert contract.startswith(f'"""{op}(')


def test_auto_resolves_every_op_on_every_device() -> None:
    for device in ("cpu", "cuda:0", "meta"):
        ops = registry.resolve("auto", device)
        assert all(callable(getattr(ops, op)) for op in registry.OPS)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(registry.BackendUnavailableError, match=r"reference.*, got 'fast'"):
        registry.resolve("fast")


def test_a_chosen_backend_never_falls_back(plant: Any) -> None:
    plant("silu_mul", "cuda", silu_mul=lambda gate_up: gate_up)
    assert "cuda" in registry.backends()
    with pytest.raises(ValueError, match=r"rms_norm: not implemented: there is no cuda\.py"):
        registry.resolve("cuda")


def test_auto_takes_what_can_run_op_by_op(plant: Any) -> None:
    def silu_mul(gate_up: Any) -> Any: ...
    def rms_norm(x: Any, weight: Any, eps: float) -> Any: ...

    plant("silu_mul", "native", silu_mul=silu_mul)
    plant("rms_norm", "native", rms_norm=rms_norm, why_unavailable=lambda: "needs AVX2")
    ops = registry.resolve("auto", "cpu")
    assert ops.silu_mul is silu_mul
    assert ops.rms_norm is registry.load("rms_norm", "reference")
    assert registry.resolve("reference").silu_mul is registry.load("silu_mul", "reference")
    with pytest.raises(registry.BackendUnavailableError, match="cannot run rms_norm: needs AVX2"):
        registry.load("rms_norm", "native")
    rows = {(row.op, row.backend): row.reason for row in registry.table()}
    assert rows["silu_mul", "native"] is None
    assert rows["rms_norm", "native"] == "needs AVX2"
    assert rows["rms_norm", "reference"] is None


def test_auto_on_cuda_asks_flash_attention_first(plant: Any) -> None:
    reference = registry.load("prefill_attention", "reference")

    @functools.wraps(reference)
    def prefill_attention() -> None: ...

    plant("prefill_attention", "flash_attn", prefill_attention=prefill_attention)
    num_lacking = len(registry.OPS) - 1
    assert registry.resolve("auto", "cuda:0").prefill_attention is prefill_attention
    assert registry.resolve("auto", "cpu").prefill_attention is not prefill_attention
    with pytest.raises(ValueError, match=rf"cannot run {num_lacking} of") as refused:
        registry.resolve("flash_attn", "cuda:0")
    assert "rms_norm: not implemented: there is no flash_attn.py" in str(refused.value)
    assert "prefill_attention" not in str(refused.value)


def test_another_signature_fails_at_registration(plant: Any) -> None:
    plant("silu_mul", "native", silu_mul=lambda x: x)
    with pytest.raises(TypeError, match=r"expected \(gate_up\), got \(x\)"):
        registry.load("silu_mul", "native")


def test_a_failing_import_is_a_reason(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("No module named 'triton'")

    plant("silu_mul", "triton_kernel")
    monkeypatch.setattr(registry, "import_module", fail)
    reason = registry.why_unavailable("silu_mul", "triton")
    assert reason == "its import fails: No module named 'triton'"


def test_importing_the_registry_imports_no_implementation() -> None:
    code = (
        "import sys, stagebeam.kernels.registry as registry; modules = registry.MODULES.values();"
        "sys.exit(any(name.startswith('stagebeam.kernels') and name.endswith(tuple(modules)) "
        "for name in sys.modules))"
    )
    root = KERNELS.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
