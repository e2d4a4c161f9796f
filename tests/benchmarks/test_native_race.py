"""The native backend's race: its summaries' arithmetic, its rounds in pieces, its counts and its card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.baselines.peers import peers
from stagebeam.benchmarks.speed import instructions, native_card, native_race, native_setting
from stagebeam.benchmarks.speed.bench_command import INCOMPLETE
from stagebeam.benchmarks.speed.native_bars import check_bars
from stagebeam.benchmarks.speed.native_engines import EQUAL_BITS
from stagebeam.benchmarks.speed.native_result import PEERS, SavedPart, read_result
from stagebeam.benchmarks.speed.native_setting import Part, Record, Round, Settings, in_turns
from stagebeam.benchmarks.speed.native_summary import decode_summary, rates_summary

SETTINGS = Settings(rounds=3)


def record(number: int, branches: int, seconds: float, gemm_rate: float) -> Record:
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


def decode_records() -> list[Record]:
    """Turned from round to round, as the race gives them."""
    cases = (1, 0.02), (8, 0.08)
    return [
        record(number, branches, seconds / (number + 1 if branches == 1 else 1), 2e9)
        for number in range(3)
        for branches, seconds in (cases if number % 2 else cases[::-1])
    ]


def test_a_step_is_held_against_the_bandwidth_and_the_products_of_its_own_moment() -> None:
    one, eight = decode_summary(decode_records())["rows"]
    assert one["percent_of_floor"]["median"] == pytest.approx(50)  # 10 MB at 1, 2 and 3 GB/s
    assert one["over_bound"]["median"] == pytest.approx(2)
    assert eight["over_bound"]["median"] == pytest.approx(2)  # 80 M multiply-adds at 2 G a second
    assert eight["over_one_branch"]["median"] == pytest.approx(8)


def test_ratios_are_within_a_round_however_its_contenders_were_turned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_setting, "_PAUSE", 0)
    rates = {"other": iter([10.0, 20.0, 40.0]), "stagebeam int8": iter([30.0, 60.0, 80.0])}
    calls = {name: lambda values=values: next(values) for name, values in rates.items()}
    records = [{"round": n, **r} for n in range(3) for r in in_turns(calls, n)]
    assert [r["contender"] for r in records[2:4]] == ["stagebeam int8", "other"]
    over = rates_summary(records)["ours_over"]["stagebeam int8 / other"]
    assert over["median"] == pytest.approx(3)
    assert over["rounds"] == 3


class FakeRace:
    def __init__(self) -> None:
        self.begun: list[int] = []

    def begin_round(self, number: int) -> None:
        self.begun.append(number)

    def bandwidth(self) -> float:
        return 3e9


@contextmanager
def opened(race: Any) -> Iterator[Round]:
    yield lambda number: [{"contender": "stagebeam int8", "value": float(number)}]


PART = Part(open=opened, summarise=rates_summary, seconds=1)


def test_a_stopped_part_goes_on_with_its_next_round(tmp_path: Path) -> None:
    race: Any = FakeRace()
    saved = SavedPart("x", PART, SETTINGS, tmp_path)
    assert native_race.measure(race, PART, saved, end=0) == INCOMPLETE  # one round all the same
    again = SavedPart("x", PART, SETTINGS, tmp_path)
    assert again.num_missing == 2
    assert native_race.measure(race, PART, again, end=None) == 0
    assert race.begun == [0, 1, 2]
    part = read_result(tmp_path)["x"]
    assert [r["value"] for r in part["records"]] == [0, 1, 2]
    assert part["records"][0]["bandwidth"] == 3e9
    assert part["result"]["tokens_per_second"]["stagebeam int8"]["median"] == 1
    done = SavedPart("x", PART, SETTINGS, tmp_path)
    assert native_race.measure(race, PART, done, end=None) == 0
    assert race.begun == [0, 1, 2]  # nothing was missing


def test_rounds_of_other_code_or_settings_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SavedPart("x", PART, SETTINGS, tmp_path).add([{"contender": "a", "value": 1.0}], 1.0)
    assert SavedPart("x", PART, SETTINGS, tmp_path).num_missing == 2
    assert SavedPart("x", PART, Settings(rounds=3, tokens=7), tmp_path).num_missing == 3
    assert SavedPart("x", PART, Settings(rounds=5), tmp_path).num_missing == 4
    assert SavedPart("y", PART, SETTINGS, tmp_path).num_missing == 3
    monkeypatch.setattr(provenance, "commit", lambda: "another")
    other = SavedPart("x", PART, SETTINGS, tmp_path)
    assert other.num_missing == 3
    other.add([{"contender": "b", "value": 2.0}], 1.0)
    assert [r["contender"] for r in read_result(tmp_path)["x"]["records"]] == ["b"]


def test_a_part_that_tells_all_in_one_round_has_one(tmp_path: Path) -> None:
    part = Part(open=opened, summarise=rates_summary, seconds=1, is_once=True)
    assert SavedPart("x", part, SETTINGS, tmp_path).num_missing == 1


def test_every_peer_has_ours_of_as_many_bits() -> None:
    assert set(EQUAL_BITS) == {"hf", *peers(1, 1)}


def part_of(summary: dict[str, Any], records: list[Record]) -> dict[str, Any]:
    return {
        "result": summary,
        "records": records,
        "settings": {"tokens": 128, "prompt": 512, "threads": 2},
        "machine": {"cpu": "c", "cores": 2},
        "versions": dict.fromkeys(("torch", "transformers", *PEERS), "1"),
        "isa": "avx512",
        "commit": "abc",
    }


def engine_part(other: str, ours: str, ratio: float) -> dict[str, Any]:
    values = {other: 10.0, f"stagebeam {ours}": 10 * ratio}
    records = [{"round": 0, "contender": name, "value": value} for name, value in values.items()]
    return part_of(rates_summary(records), records)


def test_bars_name_what_holds_what_is_missed_and_what_was_not_measured() -> None:
    parts = {
        "decode": part_of(decode_summary(decode_records()), decode_records()),
        "llamacpp-q8_0-batch1": engine_part("llama.cpp Q8_0", "int8", 3.0),
        "llamacpp-q8_0-batch4": engine_part("llama.cpp Q8_0", "int8", 2.0),
        "llamacpp-f32-batch1": engine_part("llama.cpp F32", "float32", 0.9),
        "openvino-f16-batch1": engine_part("OpenVINO F16", "bfloat16", 2.0),
        "bundled": engine_part("HF float32", "int8", 25.0),
    }
    bars = {bar.name: bar for bar in check_bars(parts)}
    assert bars["one branch, % of the floor"].holds is False
    assert bars["int8 over llama.cpp Q8_0"].holds is True
    assert "batch 4 (10 tokens/s) 2.00" in bars["int8 over llama.cpp Q8_0"].measured
    assert bars["float32 over llama.cpp F32"].holds is False
    assert bars["bfloat16 over OpenVINO F16"].holds is None  # one batch of two
    assert bars["one row, over HF float32"].holds is None
    assert next(bar for name, bar in bars.items() if name.startswith("bundled")).holds is True
    assert bars["prefill of 512 tokens, over HF float32"].measured == "not measured"


def test_the_card_replaces_what_stands_between_the_marks(tmp_path: Path) -> None:
    parts = {"decode": part_of(decode_summary(decode_records()), decode_records())}
    (tmp_path / "result.json").write_text(json.dumps({"parts": parts}))
    document = tmp_path / "native.md"
    document.write_text("prose\n<!-- measured: begin -->\nstale\n<!-- measured: end -->\nmore\n")
    arguments = ["--results", tmp_path, "--avx2-results", tmp_path / "none", "--into", document]
    assert native_card.main([str(argument) for argument in arguments]) == 0
    text = document.read_text()
    assert text.startswith("prose\n")
    assert text.endswith("more\n")
    assert "stale" not in text
    assert "| int8 | 8 | 80.00 (80.00-80.00) |" in text
    assert "3 rounds of 128 tokens after 512" in text


def test_counts_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    assert instructions.instructions() == {"skipped": "valgrind is not installed"}


needs_valgrind = pytest.mark.skipif(
    instructions.missing() is not None, reason=str(instructions.missing())
)


@needs_valgrind
def test_kernels_need_no_more_instructions_than_was_recorded() -> None:
    """Within a tenth: where arrays fall moves counts a little, a block of rows that is lost far more."""
    recorded = read_result(native_race.RESULTS)["instructions"]["result"]
    if recorded.get("compiler") != instructions.compiler():
        pytest.skip(f"recorded with {recorded.get('compiler')}, this is {instructions.compiler()}")
    counts = instructions.count(instructions.CASES)
    assert set(counts) == set(recorded["instructions"])
    longer = {
        case: (count, recorded["instructions"][case])
        for case, count in counts.items()
        if count > 1.1 * recorded["instructions"][case]
    }
    assert not longer, "`native_race --only instructions --again` records what is meant"


@needs_valgrind
@pytest.mark.slow
def test_counts_do_not_vary_from_run_to_run() -> None:
    cases = ["linear:int8:1", "attention:bfloat16:8"]
    first = instructions.count(cases)
    assert first["linear:int8:1"] > 3072 * 576 / 32  # a vector instruction takes 32 weights
    assert instructions.count(cases) == first
