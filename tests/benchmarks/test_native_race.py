"""The native backend's race: its summary's arithmetic and its counts of instructions."""

from __future__ import annotations

import shutil

import pytest

from stagebeam.benchmarks.speed import instructions, native_race
from stagebeam.benchmarks.speed.native_table import table


def record(number: int, branches: int, seconds: float, gemm_rate: float) -> dict[str, object]:
    return {
        "round": number,
        "format": "int8",
        "branches": branches,
        "step_seconds": seconds,
        "bandwidth": 1e9 * (number + 1),
        "gemm_rate": gemm_rate,
        "multiply_adds": 10_000_000 * branches,
        "weight_bytes": 9_000_000,
        "kv_bytes": 1_000_000,
        "least_kv_bytes": 1_000_000,
    }


def test_a_step_is_held_against_the_bandwidth_and_the_products_of_its_own_moment() -> None:
    records = [
        record(number, branches, seconds, 2e9)
        for number in range(3)
        for branches, seconds in ((1, 0.02 / (number + 1)), (8, 0.08))
    ]
    one, eight = native_race._decode_summary(records)
    assert one["percent_of_floor"] == pytest.approx(50)  # 10 MB at 1, 2 and 3 GB/s
    assert one["over_bound"] == pytest.approx(2)
    assert eight["over_bound"] == pytest.approx(2)  # 80 M multiply-adds at 2 G a second
    assert eight["over_one_branch"]["median"] == pytest.approx(8)
    part = {
        "result": {"summary": [one, eight]},
        "isa": "avx512",
        "bandwidth_bytes_per_second": [1e9, 2e9],
    }
    assert "| int8 | 8 | 80.00" in table({"parts": {"decode": part}})


def test_counts_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert instructions.instructions() == {"skipped": "valgrind is not installed"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instruction_counts_do_not_vary() -> None:
    first = instructions.count("linear", "int8", 1)
    assert first > 100_000  # 1.8 M weights, 32 of them a vector instruction
    assert instructions.count("linear", "int8", 1) == first
