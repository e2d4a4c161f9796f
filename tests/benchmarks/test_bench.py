"""`stagebeam bench` on the bundled checkpoint, and its arithmetic. No test asserts a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stagebeam.benchmarks.speed import bench_command
from stagebeam.benchmarks.speed.contenders import Contenders
from stagebeam.benchmarks.speed.floor import ideal_kv_bytes, search_bytes, step_bytes
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed
from stagebeam.benchmarks.speed.statistics import fitted_slope, paired_ratio, spread
from stagebeam.cli import main
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.outputs import Candidate, StageResult


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    speed = MachineSpeed(bytes_per_second=20e9, flops=1e11)
    monkeypatch.setattr(bench_command, "measure_machine", lambda: speed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stage(*lengths: int) -> StageResult:
    candidates = tuple(
        Candidate(
            text="",
            inner="",
            token_ids=tuple(range(length)),
            cumulative_logprob=None,
            finish_reason="tag",
        )
        for length in lengths
    )
    return StageResult(name="s", candidates=candidates)


def test_bench_writes_one_document_with_every_number(tmp_path: Path, capsys) -> None:
    names = ["hf-published", "hf-strong", "ours-float32", "ours-float32-generate-serial"]
    options = "--lengths 3,20,5,2 --rounds 1 --beam-size 2 --backend reference --json"
    command = ["bench", *options.split(), "--contenders", ",".join(names)]
    assert main([*command, "--output", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert document["schema_version"] == 1
    assert list(document["summary"]) == names
    assert len(document["ratios"]) == 6
    for name in names:
        record = document["records"][name][0]
        assert record["completion_tokens"] == 2 * 30
        assert record["seconds"] >= sum(record["phases"].values()) - 1e-6
        assert record["image_encodes"] == (8 + 4 if name == "hf-published" else 1)
    ours = document["records"]["ours-float32"][0]
    assert ours["decode_kv_bytes"] == pytest.approx(ours["ideal_kv_bytes"], rel=0.05)
    table = (tmp_path / "bench.md").read_text()
    assert all(name in table for name in names)
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_free_running_questions_together(capsys) -> None:
    options = "--free --contenders ours-float32 --questions 3 --rounds 1 --strategy greedy --json"
    assert main(["bench", *options.split(), "--backend", "reference"]) == 0
    record = json.loads(capsys.readouterr().out)["records"]["ours-float32"][0]
    assert record["well_formed"] == 3
    assert record["image_encodes"] == 3


def test_unknown_contenders_are_refused_in_words(capsys) -> None:
    assert main(["bench", "--contenders", "theirs"]) == 2
    assert "no contender is called 'theirs'" in capsys.readouterr().err
    with Contenders(BUNDLED_CHECKPOINT, 1 << 26) as makers:
        for name in ("ours-float32-quickly", "ours-float99"):
            with pytest.raises(InvalidInputError):
                makers.make(name)


def test_a_search_reads_what_its_steps_read() -> None:
    spec = read_spec(BUNDLED_CHECKPOINT)
    sizes = {"weight_bytes": 2.0, "kv_bytes": 4, "vision_tokens": 10}
    per_token = spec.kv_bytes_per_token(4)
    alone = step_bytes(spec, trunk_tokens=7, tail_tokens=1, **sizes)
    cross = 10 * 2 * spec.num_cross_layers * spec.num_kv_heads * spec.head_dim * 4
    assert alone == 2 * spec.num_decode_parameters + 8 * per_token + cross
    # Two branches of 1 and 2 tokens: step 1 has both, step 2 only the second.
    total = search_bytes(spec, [stage(1, 2)], prompt_tokens=7, **sizes)
    fixed = 2 * spec.num_decode_parameters + cross
    assert total == 2 * fixed + (7 + 2) * per_token + (7 + 2) * per_token


def test_ideal_memory_is_one_trunk_tails_and_image() -> None:
    spec = read_spec(BUNDLED_CHECKPOINT)
    sizes = {"kv_bytes": 4, "prompt_tokens": 33, "block_size": 16}
    block = 16 * spec.kv_bytes_per_token(4)
    assert ideal_kv_bytes(spec, [stage(16, 16)], has_image=False, **sizes) == 4 * block
    assert ideal_kv_bytes(spec, [stage(17, 1)], has_image=True, **sizes) == (
        5 * block + spec.image_slot_bytes(4)
    )


def test_statistics() -> None:
    assert spread([3.0, 1.0, 2.0])["median"] == 2.0
    ratio = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert ratio == {"median": 2.0, "interval": [2.0, 2.0], "rounds": 3}
    assert paired_ratio([2.0], [1.0])["interval"] is None
    fit = fitted_slope([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0])
    assert fit["exponent"] == pytest.approx(1.0)
    assert fit["seconds_per_unit"] == pytest.approx(3.0)
