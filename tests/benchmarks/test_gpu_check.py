"""gpu-check's parts that need no GPU: outcomes, comparison, report, and the refusal without one."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (pip install 'stagebeam[triton]')")

from stagebeam.benchmarks.gpu_check.__main__ import main
from stagebeam.benchmarks.gpu_check.checks import Check, run_check
from stagebeam.benchmarks.gpu_check.half_precision import half_precision_parity
from stagebeam.benchmarks.gpu_check.kernel_times import BEAM_SIZES
from stagebeam.benchmarks.gpu_check.report import write_report
from stagebeam.benchmarks.gpu_check.step_times import step_times
from stagebeam.benchmarks.gpu_check.tokens import first_difference


@pytest.mark.parametrize(
    ("got", "expected", "at"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([4], [], 0)],
)
def test_where_tokens_part(got, expected, at) -> None:
    assert first_difference(got, expected) == at


def test_a_fault_is_a_failed_check() -> None:
    def fault():
        raise RuntimeError("out of memory")

    assert run_check("it", fault).details == {"error": "RuntimeError: out of memory"}
    assert not run_check("it", fault).is_ok
    assert run_check("it", lambda: (True, {"a": 1})).is_ok


def test_the_report(tmp_path) -> None:
    checks = [Check(name="a <b>", is_ok=True), Check(name="c", is_ok=False, details={"x": "<i>"})]
    write_report(checks, tmp_path, device="A GPU <1>")
    document = json.loads((tmp_path / "gpu-check.json").read_text())
    assert document["is_ok"] is False
    assert document["ran_on_a_gpu"] is True
    assert [check["name"] for check in document["checks"]] == ["a <b>", "c"]
    page = (tmp_path / "gpu-check.html").read_text()
    assert "gpu-check: FAILED" in page
    assert "a &lt;b&gt;" in page
    assert "<i>" not in page


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--output", str(tmp_path / "report")]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_dry_run_cannot_be_taken_for_a_gpus(tmp_path, capsys) -> None:
    assert main(["--dry-run", "--output", str(tmp_path)]) == 0
    assert "RUN ON A CPU" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"dry-run.json", "dry-run.html"}
    document = json.loads((tmp_path / "dry-run.json").read_text())
    assert document["ran_on_a_gpu"] is False
    tokens, times = (check["details"] for check in document["checks"])
    assert tokens == {"num_tokens": 4, "first_difference": None}
    assert times["copy_gb_per_second"] > 0
    for num_rows in BEAM_SIZES:
        for timed in times[f"rows_{num_rows}"].values():
            assert timed["share"] == pytest.approx(timed["floor_us"] / timed["us"])


@pytest.mark.slow
def test_half_precision_and_step_times_run_on_a_cpu() -> None:
    is_ok, details = half_precision_parity("cpu")
    assert is_ok
    assert all(0 < of["ratio"] <= 2.1 for of in details.values())
    _, times = step_times("cpu", dtype="float32", num_tokens=4)
    assert times["beam_4"]["judge_calls"] > 0
    assert times["beam_4"]["hf_generate_ms_a_step"] > 0
