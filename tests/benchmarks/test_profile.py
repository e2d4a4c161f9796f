"""`stagebeam profile`: measured, predicted and traced. No test asserts a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stagebeam.benchmarks.baselines.task import Lengths
from stagebeam.benchmarks.speed import bench_command, profile_command, scaling
from stagebeam.benchmarks.speed.bare import BareDecode, prefill_seconds, step_seconds
from stagebeam.benchmarks.speed.calibration import _solve, calibrate
from stagebeam.benchmarks.speed.costs import GPUS, Step
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed
from stagebeam.benchmarks.speed.planner import predict
from stagebeam.cli import main
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.engine import Engine
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.params import JudgeParams
from stagebeam.engine.stages import StagePlan

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    speed = MachineSpeed(bytes_per_second=20e9, flops=1e11)
    monkeypatch.setattr(bench_command, "measure_machine", lambda: speed)
    monkeypatch.setattr(profile_command, "measure_machine", lambda: speed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder_11b(tmp_path: Path) -> Path:
    shutil.copy(MODELS / "llama-3.2-11b-vision.json", tmp_path / "config.json")
    return tmp_path


def test_profile_measures_each_beam_size_and_traces_it(tmp_path: Path, capsys) -> None:
    options = "--beam-sizes 1,3 --lengths 3,4,5,2 --rounds 1 --no-prediction --json"
    files = ["--trace", str(tmp_path / "trace.json"), "--output", str(tmp_path)]
    assert main(["profile", *options.split(), "--backend", "reference", *files]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["summary"]) == ["N=1", "N=3"]
    assert document["over_first"]["N=1"]["median"] == 1.0
    wide = document["records"]["N=3"][0]
    assert wide["completion_tokens"] == 3 * 14
    assert wide["decode_steps"] == 14
    assert wide["decode_kv_bytes"] == pytest.approx(wide["ideal_kv_bytes"], rel=0.05)
    assert (tmp_path / "profile.png").stat().st_size > 1000
    trace = json.loads((tmp_path / "trace.json").read_text())
    lanes = {
        event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"
    }
    assert {"passes", "branch 0", "branch 1", "branch 2", "judging"} <= lanes
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert sum(event["cat"] == "decode" for event in spans) == 3 * 14
    assert all(event["dur"] > 0 and event["ts"] >= 0 for event in spans)


def test_plan_needs_a_config_only(folder_11b: Path, capsys) -> None:
    options = "--gpu h100 --beam-sizes 1,4,16 --json"
    assert main(["profile", "--plan", "--model", str(folder_11b), *options.split()]) == 0
    rows = json.loads(capsys.readouterr().out)["plans"][0]["predictions"]
    one, four, sixteen = rows
    # 16.3 GB of text weights in bf16 at 80 % of 3.35 TB/s: about 7 ms a step, whatever the beam size.
    assert 6e-3 < one["step_seconds"] < 9e-3
    assert four["step_seconds"] < 1.1 * one["step_seconds"]
    assert one["judge"] == 0
    assert 0 < four["judge"] < sixteen["judge"]
    assert one["kv_bytes"] < four["kv_bytes"] < sixteen["kv_bytes"]
    assert main(["profile", "--plan", "--gpu", "tpu"]) == 2
    assert main(["profile", "--beam-sizes", "1,1"]) == 2


def test_every_gpu_is_faster_at_less_work(folder_11b: Path) -> None:
    spec = read_spec(folder_11b)
    step = Step(rows=4, trunk_tokens=300, tail_tokens=50, vision_tokens=1601)
    for costs in GPUS.values():
        base = costs.decode_step(spec, step)
        assert costs.decode_step(spec, replace(step, rows=64, trunk_tokens=8192)) > base
        assert costs.prefill(spec, 64, 32) < costs.prefill(spec, 4096, 2048)
        assert costs.encode(spec) > 0


def test_the_planner_counts_what_the_engine_does(capsys) -> None:
    """Memory is a real run's; judge tokens too, but for which matches its seed drew."""
    options = "--contenders ours-float32 --lengths 6,9,12,4 --rounds 1 --beam-size 3 --json"
    assert main(["bench", *options.split(), "--backend", "reference"]) == 0
    record = json.loads(capsys.readouterr().out)["records"]["ours-float32"][0]
    spec = read_spec(BUNDLED_CHECKPOINT)
    costs = replace(GPUS["h100"], kv_bytes=4)
    plan = StagePlan.from_json(BUNDLED_CHECKPOINT / "stage_plan.json")
    found = predict(spec, costs, 3, Lengths(stages=(6, 9, 12, 4)), JudgeParams(), plan)
    assert 0.5 < found.num_judge_tokens / record["judge_prompt_tokens"] < 2
    assert found.kv_bytes == pytest.approx(record["decode_kv_bytes"], rel=0.05)


def test_prices_are_recovered_from_exact_times() -> None:
    specs = [
        replace(read_spec(BUNDLED_CHECKPOINT), num_layers=layers, hidden_size=hidden, vocab_size=v)
        for layers, hidden, v in ((2, 192, 1000), (12, 192, 1000), (6, 768, 1000), (2, 192, 65000))
    ]
    true = np.array([1e-4, 2e-5, 4e-11, 1e-9])
    times = [true @ [1, s.num_layers, 4 * s.num_decode_parameters, s.vocab_size] for s in specs]
    found = _solve(specs, np.array(times)[:, None], 4)[:, 0]
    np.testing.assert_allclose(found, true, rtol=1e-6)
    # A price that would come out negative is left out instead.
    assert (_solve(specs, np.array([[5e-3], [1e-3], [2e-3], [6e-3]]), 4) >= 0).all()


def test_bare_passes_leave_nothing_behind() -> None:
    with Engine(kv_cache_bytes=32 << 20, backend="reference") as engine:
        before = engine.stats()
        assert step_seconds(engine, rows=3, trunk_tokens=40, num_steps=2, num_groups=2) > 0
        assert prefill_seconds(engine, num_tokens=20, num_repeats=1) > 0
        decode = BareDecode(engine, rows=2, trunk_tokens=17, max_steps=4)
        assert engine.stats()["num_used"] > 0
        decode.close()
        after = engine.stats()
        for name in ("num_free", "num_reserved", "num_sequences", "num_images_in_use"):
            assert after[name] == before[name]


@pytest.mark.slow
def test_calibration_prices_a_step() -> None:
    costs = calibrate("float32", "reference", rows=(1, 4, 32), num_steps=2)
    assert costs.per_kv_number[2] == pytest.approx(8 * costs.per_kv_number[1])
    step = Step(rows=2, trunk_tokens=100, tail_tokens=10, vision_tokens=10)
    assert costs.decode_step(read_spec(BUNDLED_CHECKPOINT), step) > 0
    assert costs.prefill_flops > 0


def test_scaling_sweeps_every_size(monkeypatch, tmp_path: Path, capsys) -> None:
    speed = MachineSpeed(bytes_per_second=20e9, flops=1e11)
    monkeypatch.setattr(scaling, "measure_machine", lambda: speed)
    small = {"branches": (1, 2), "trunk tokens": (20, 40), "questions in flight": (1, 2)}
    monkeypatch.setattr(scaling, "SWEEPS", {**small, "vocabulary": (1024,)})
    options = ["--backend", "reference", "--no-prediction", "--json", "--output", str(tmp_path)]
    assert scaling.main(options) == 0
    sweeps = json.loads(capsys.readouterr().out)["sweeps"]
    assert [len(sweep["points"]) for sweep in sweeps.values()] == [2, 2, 2, 1]
    assert (tmp_path / "scaling.png").stat().st_size > 1000
