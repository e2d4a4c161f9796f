"""Which implementation of each op runs: found by the module's name in the op's folder, once.

An implementation is `kernels/<op>/<module>.py` with a function named like the op. It may define
`why_unavailable() -> str | None`, asked before its function is used. Nothing is imported until a
backend is resolved, and a backend that was chosen by name never falls back to another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

MODULES = {
    "reference": "reference",
    "native": "native",
    "triton": "triton_kernel",
    "cuda": "cuda",
    "flash_attn": "flash_attn",
}
PREFERENCE = {  # of "auto", by device type
    "cpu": ("native", "reference"),
    "cuda": ("flash_attn", "cuda", "triton", "reference"),
}


class BackendUnavailableError(ValueError):
    """A backend that was asked for by name and cannot run here, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """The resolved ops; each one's contract is the docstring of its package."""

    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    layer_norm: Callable[..., Any]
    rotary_: Callable[..., Any]
    silu_mul: Callable[..., Any]
    store_kv_cache: Callable[..., Any]
    copy_blocks: Callable[..., Any]
    prefill_attention: Callable[..., Any]
    branch_attention: Callable[..., Any]
    merge_states: Callable[..., Any]
    cross_attention: Callable[..., Any]
    sample_step: Callable[..., Any]
    verdict_logits: Callable[..., Any]


OPS = tuple(field.name for field in fields(Ops))
OPTIONAL_OPS = ("int8_linear",)  # no step needs them; not every backend has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """One row of `stagebeam doctor`'s table; `reason` is None where the backend can run the op."""

    op: str
    backend: str
    reason: str | None


def backends() -> tuple[str, ...]:
    """The backends that implement at least one op here, whether or not they can run."""
    return tuple(name for name in MODULES if any(_has_module(op, name) for op in OPS))


def why_unavailable(op: str, backend: str) -> str | None:
    """The reason in words why `backend` cannot run `op` here; None if it can."""
    if backend not in MODULES:
        return f"no backend of that name; there are {', '.join(MODULES)}"
    if not _has_module(op, backend):
        return f"not implemented: there is no {MODULES[backend]}.py in kernels/{op}"
    try:
        module = _module(op, backend)
    except ImportError as error:
        return f"its import fails: {error}"
    probe: Callable[[], str | None] | None = getattr(module, "why_unavailable", None)
    return probe() if probe else None


@cache
def load(op: str, backend: str) -> Callable[..., Any]:
    """The function of one op in one backend, its signature checked against the reference's."""
    reason = why_unavailable(op, backend)
    if reason is not None:
        raise BackendUnavailableError(f"backend {backend!r} cannot run {op}: {reason}")
    function: Callable[..., Any] = getattr(_module(op, backend), op)
    expected = _parameters(getattr(_module(op, "reference"), op))
    got = _parameters(function)
    if got != expected:
        raise TypeError(
            f"kernels/{op}/{MODULES[backend]}.py does not have the reference's parameters: "
            f"expected ({', '.join(expected)}), got ({', '.join(got)})"
        )
    return function


@cache
def resolve(backend: str = "auto", device: str = "cpu") -> Ops:
    """All ops of one backend; "auto" takes, op by op, the first that can run on `device`'s type.

    Raises BackendUnavailableError with every op that a backend chosen by name lacks.
    """
    if backend == "auto":
        order = PREFERENCE.get(device.split(":")[0], ("reference",))
        return Ops(**{op: load(op, _first_available(op, order)) for op in OPS})
    if backend not in MODULES:
        raise BackendUnavailableError(
            f"backend must be auto, {' or '.join(backends())}, got {backend!r}"
        )
    reasons = {op: reason for op in OPS if (reason := why_unavailable(op, backend)) is not None}
    if reasons:
        lines = "".join(f"\n  {op}: {reason}" for op, reason in reasons.items())
        raise BackendUnavailableError(
            f"backend {backend!r} cannot run {len(reasons)} of {len(OPS)} ops; choose auto or "
            f"reference:{lines}"
        )
    return Ops(**{op: load(op, backend) for op in OPS})


def table() -> list[Availability]:
    """Every op in every backend that is present, for `stagebeam doctor`."""
    return [
        Availability(op=op, backend=backend, reason=why_unavailable(op, backend))
        for op in OPS
        for backend in backends()
    ]


def _first_available(op: str, order: tuple[str, ...]) -> str:
    return next(name for name in order if why_unavailable(op, name) is None)


@cache
def _has_module(op: str, backend: str) -> bool:
    return find_spec(f"stagebeam.kernels.{op}.{MODULES[backend]}") is not None


@cache
def _module(op: str, backend: str) -> Any:
    return import_module(f"stagebeam.kernels.{op}.{MODULES[backend]}")


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)
