"""The Triton and CUDA kernels compiled for GPUs that are not here, held to rules and to a golden file.

The default run compiles the 11B's bf16 kernels; `slow` compiles everything that the report does.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

launch = pytest.importorskip("stagebeam.kernels.triton_launch", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    launch.INTERPRETED, reason="nothing compiles under TRITON_INTERPRET"
)

if not launch.INTERPRETED:
    from stagebeam.benchmarks.kernels_report import configurations, cuda_sources, rules
    from stagebeam.benchmarks.kernels_report.compiling import Compiled, compile_all, compile_one
    from stagebeam.benchmarks.kernels_report.target import TARGETS
    from stagebeam.benchmarks.kernels_report.variant import Variant

SM_80, SM_90, SM_100 = range(3)


def broken(kernels: list[Compiled], budgets: rules.Budgets) -> list[str]:
    return [
        line
        for kernel in kernels
        for line in (*rules.broken_rules(kernel), *rules.over_budget(kernel, budgets))
    ]


@pytest.fixture(scope="module")
def variants() -> list[Variant]:
    return configurations.variants(configurations.REDUCED)


@pytest.fixture(scope="module")
def kernels(variants) -> list[Compiled]:
    return compile_all(variants)


def find(variants: list[Variant], kernel: str, **constants: int) -> Variant:
    return next(
        v
        for v in variants
        if v.kernel == kernel and all(v.constant(n) == value for n, value in constants.items())
    )


def test_no_rule_and_no_budget_is_broken(kernels) -> None:
    assert broken(kernels, rules.read_budgets()) == []


def test_the_tiles_are_those_that_the_rules_speak_of(kernels) -> None:
    """So that "wgmma where a tile has 64 rows" is not a rule about nothing."""
    products = {(k.kernel, k.block_m, k.target): k.mma for k in kernels if k.block_m}
    for kernel in ("branch_parts_kernel", "cross_attention_kernel", "prefill_attention_kernel"):
        for target in ("sm_80", "sm_90", "sm_100"):
            assert products[kernel, 16, target] == "mma.sync"
        assert products[kernel, 64, "sm_90"] == "wgmma"
        assert products[kernel, 64, "sm_100"] == "tcgen05"


@pytest.mark.slow
def test_everything_that_the_wrappers_can_launch() -> None:
    kernels = compile_all(configurations.variants())
    budgets = rules.read_budgets()
    assert broken(kernels, budgets) == []
    compiled = {key: of for key, of in budgets.items() if not key.startswith("CUDA ")}
    assert rules.stale(kernels, compiled) == []


def test_a_spilling_kernel_is_reported(variants) -> None:
    variant = find(variants, "branch_parts_kernel", BLOCK_M=64)
    kernel = compile_one(variant, TARGETS[SM_80], max_registers=64)
    (line,) = rules.broken_rules(kernel)
    assert "expected no spilled register" in line
    assert "smaller tile or more warps" in line


def test_a_lost_alignment_is_reported(variants) -> None:
    variant = find(variants, "silu_mul_kernel")
    unaligned = replace(variant, aligned=tuple(n for n in variant.aligned if n != "row_stride"))
    (line,) = rules.broken_rules(compile_one(unaligned, TARGETS[SM_90]))
    assert "expected loads of 128 bits" in line


def test_products_off_the_tensor_cores_are_reported(kernels) -> None:
    kernel = next(k for k in kernels if k.block_m == 64 and k.target == "sm_90")
    (line,) = rules.broken_rules(replace(kernel, mma="mma.sync"))
    assert "expected matrix products by wgmma, got mma.sync" in line


def test_what_the_golden_file_does_not_allow_is_reported(kernels) -> None:
    kernel = kernels[0]
    budgets = {kernel.key: {kernel.target: (kernel.registers, kernel.shared_bytes)}}
    assert rules.over_budget(kernel, budgets) == []
    more = replace(kernel, registers=kernel.registers + 9, shared_bytes=kernel.shared_bytes + 1)
    registers, shared = rules.over_budget(more, budgets)
    assert f"expected at most {kernel.registers} + 8 registers, got {more.registers}" in registers
    assert "bytes of shared memory" in shared
    (unknown,) = rules.over_budget(kernel, {})
    assert "not in golden.json" in unknown
    assert "launched no more" in rules.stale([], budgets)[0]


def test_what_fits_a_multiprocessor() -> None:
    a100, h100, b200 = TARGETS
    assert a100.occupancy(registers=32, shared_bytes=0, num_warps=4) == 1
    assert a100.occupancy(registers=128, shared_bytes=0, num_warps=4) == 0.25
    assert a100.occupancy(registers=129, shared_bytes=0, num_warps=4) == 0.1875
    assert a100.occupancy(registers=32, shared_bytes=a100.block_shared_bytes, num_warps=8) == 0.125
    assert a100.occupancy(registers=32, shared_bytes=a100.block_shared_bytes + 1, num_warps=8) == 0
    assert h100.occupancy(registers=32, shared_bytes=80 << 10, num_warps=4) == 0.125
    assert b200.occupancy(registers=32, shared_bytes=0, num_warps=4, tensor_columns=256) == 0.125


@pytest.mark.skipif(
    cuda_sources.why_unavailable() is not None if not launch.INTERPRETED else True,
    reason="no CUDA compiler nvcc",
)
def test_the_cuda_sources_too() -> None:
    found = cuda_sources.compile_cuda_sources()
    assert len(found) == 3 * 12
    assert broken(found, rules.read_budgets()) == []
