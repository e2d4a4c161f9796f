"""gpu-check's parts that need no GPU: outcomes, comparison, report, and the refusal without one."""

from __future__ import annotations

import json

import pytest
import torch

from stagebeam.benchmarks import gpu_check
from stagebeam.benchmarks.gpu_check import Check, first_difference, run_check, write_report


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
    write_report(checks, tmp_path)
    document = json.loads((tmp_path / "gpu-check.json").read_text())
    assert document["is_ok"] is False
    assert [check["name"] for check in document["checks"]] == ["a <b>", "c"]
    page = (tmp_path / "gpu-check.html").read_text()
    assert "gpu-check: FAILED" in page
    assert "a &lt;b&gt;" in page
    assert "<i>" not in page


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--output", str(tmp_path / "report")]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_the_token_check_runs_on_a_cpu() -> None:
    assert len(gpu_check.greedy_tokens("cpu", 5)) == 5
