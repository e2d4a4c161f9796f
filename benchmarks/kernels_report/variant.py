"""What Triton compiles a launch to: a kernel with its types, constants and alignments, by value.

Derived with the just-in-time compiler's own specialisation, so a variant is what a GPU would run.
Nothing here needs a driver; a variant travels between processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from triton._C.libtriton import native_specialize_impl
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from stagebeam.kernels.triton_launch import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One compiled form of a kernel, for any target.

    signature: (name, type) of every parameter; constants: (name, value) of those compiled in
    aligned:   parameters that are known to be multiples of 16: addresses in bytes, integers
    """

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    has_fp_fusion: bool

    @property
    def dtype(self) -> str:
        """The model's number format, as far as a pointer shows it; else the last pointer's elements."""
        pointers = [kind[1:] for _, kind in self.signature if kind.startswith("*")]
        formats = [kind for kind in ("bf16", "fp16", "fp32") if kind in pointers]
        return [*formats, pointers[-1]][0]

    def constant(self, name: str) -> Any:
        """A compile-time constant; None where the kernel has none of that name."""
        return dict(self.constants).get(name)

    @property
    def key(self) -> str:
        """The variant in one line; different variants of one launch set have different keys."""
        constants = [f"{name}={_short(value)}" for name, value in self.constants]
        unaligned = [
            f"{name}:any"
            for name, kind in self.signature
            if kind.startswith("*") and name not in self.aligned
        ]
        return " ".join([self.kernel, self.dtype, *constants, *unaligned])

    def source(self) -> ASTSource:
        """What `triton.compile` takes."""
        kernel = getattr(import_module(self.module), self.kernel)
        names = kernel.arg_names
        return ASTSource(
            kernel,
            dict(self.signature),
            {(names.index(name),): value for name, value in self.constants},
            {(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned},
        )

    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.has_fp_fusion,
        }


def variant_of(launch: Launch) -> Variant:
    """The variant that a launch runs."""
    signature: list[tuple[str, str]] = []
    constants: list[tuple[str, Any]] = []
    aligned: list[str] = []
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr:
            kind, hint = "constexpr", None
        else:
            kind, hint = native_specialize_impl(
                CUDABackend,
                value,
                parameter.is_const,
                not parameter.do_not_specialize,
                not parameter.do_not_specialize_on_alignment,
            )
        signature.append((name, kind))
        if kind == "constexpr":
            constants.append((name, value))
        elif isinstance(hint, str) and CUDABackend.parse_attr(hint):
            aligned.append(name)
    return Variant(
        module=launch.kernel.fn.__module__,
        kernel=launch.kernel.fn.__name__,
        signature=tuple(signature),
        constants=tuple(constants),
        aligned=tuple(aligned),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        has_fp_fusion=launch.has_fp_fusion,
    )


def distinct(launches: Iterable[Launch]) -> list[Variant]:
    """Every variant once, in the order of first use."""
    found: dict[str, Variant] = {}
    for launch in launches:
        variant = variant_of(launch)
        known = found.setdefault(variant.key, variant)
        assert known == variant, f"two variants share the key {variant.key!r}: {known}, {variant}"
    return list(found.values())


def _short(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
