"""One rank, two ranks and plain: the same losses from the same global batches."""

from __future__ import annotations

import pytest
import tiny_run
import torch
from transformers import AutoModelForImageTextToText

from stagebeam.training import objective as objective_module

KINDS = "1t21t2t112tt" * 3
NUM_STEPS = 50
MIXED = {"kinds": KINDS, "steps": NUM_STEPS, "config": {"save_interval": 0, "max_grad_norm": 2.0}}
SHORT = {**MIXED, "steps": 14}
HALF = {**SHORT, "config": {**MIXED["config"], "precision": "autocast"}}
ALTERNATING = {"kinds": "1t", "steps": 12, "config": {"save_interval": 0}}


@pytest.fixture(scope="module")
def runs(mllama_dir, tmp_path_factory):
    """Runs over images and text: plain in this process, sharded under torchrun on two ranks."""
    root = tmp_path_factory.mktemp("ranks")
    saving = {**MIXED["config"], "save_interval": 17, "keep_last": 9}
    checkpointing = {**MIXED["config"], "activation_checkpointing": True, "num_workers": 2}
    saved = root / "two" / "checkpoints" / "step-00000017"
    two_ranks = [
        {**MIXED, "output": root / "two", "batch_size": 4, "config": saving},
        {**MIXED, "output": root / "resumed", "batch_size": 4, "start_from": saved},
        {**SHORT, "output": root / "checkpointed", "batch_size": 4, "config": checkpointing},
        {**SHORT, "output": root / "halves", "batch_size": 2, "accumulation": 2},
        {**ALTERNATING, "output": root / "text-rank", "batch_size": 1},
        {**HALF, "output": root / "half", "batch_size": 4},
    ]
    process = tiny_run.start(mllama_dir, two_ranks, num_ranks=2)
    tiny_run.train(mllama_dir, root / "plain", batch_size=8, **MIXED)
    tiny_run.train(mllama_dir, root / "plain-halves", batch_size=4, accumulation=2, **SHORT)
    tiny_run.train(mllama_dir, root / "plain-short", batch_size=8, **SHORT)
    tiny_run.train(mllama_dir, root / "plain-half", batch_size=8, **HALF)
    tiny_run.train(mllama_dir, root / "plain-text-rank", batch_size=2, **ALTERNATING)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": 0,
            "WORLD_SIZE": 1,
            "MASTER_PORT": tiny_run.free_port(),
        }.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "localhost")
        tiny_run.train(mllama_dir, root / "one", batch_size=8, **MIXED)
        patch.setattr(objective_module, "LOGITS_CHUNK", 13)
        tiny_run.train(mllama_dir, root / "chunked", batch_size=8, **SHORT)
    tiny_run.finish(process)
    return root


def losses(folder) -> torch.Tensor:
    return torch.tensor(tiny_run.read_losses(folder), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("one", "plain"),
        ("two", "plain"),
        ("checkpointed", "plain-short"),
        ("chunked", "plain-short"),
        ("halves", "plain-halves"),
    ],
)
def test_losses_do_not_depend_on_the_ranks(runs, name, reference):
    wanted = losses(runs / reference)
    assert len(wanted) == (NUM_STEPS if reference == "plain" else SHORT["steps"])
    assert wanted[-5:].mean() < wanted[:5].mean()
    torch.testing.assert_close(losses(runs / name), wanted, rtol=1e-4, atol=0)


def test_bfloat16_products_on_two_ranks(runs):
    """As far apart as bfloat16 rounds, and no further from float32."""
    wanted = losses(runs / "plain-half")
    assert len(wanted) == HALF["steps"]
    torch.testing.assert_close(losses(runs / "half"), wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(wanted, losses(runs / "plain-short"), rtol=2e-2, atol=0)
    assert not torch.equal(wanted, losses(runs / "plain-short"))


def test_a_rank_with_text_only_rows_waits_for_nobody(runs):
    # Two examples, one with an image: in every step of phase one a rank has only text.
    wanted = losses(runs / "plain-text-rank")
    torch.testing.assert_close(losses(runs / "text-rank"), wanted, rtol=1e-4, atol=0)


def test_two_ranks_resume_bit_for_bit(runs):
    assert tiny_run.read_losses(runs / "resumed") == tiny_run.read_losses(runs / "two")[17:]


def test_a_checkpoint_of_two_ranks_resumes_on_one(runs, mllama_dir, tmp_path):
    saved = runs / "two" / "checkpoints" / "step-00000017"
    tiny_run.train(mllama_dir, tmp_path, batch_size=8, start_from=saved, **MIXED)
    wanted = losses(runs / "plain")[17:]
    torch.testing.assert_close(losses(tmp_path), wanted, rtol=1e-4, atol=0)


def test_exports_hold_the_same_weights(runs):
    load = AutoModelForImageTextToText.from_pretrained
    plain = load(runs / "plain" / "final").state_dict()
    two = load(runs / "two" / "final").state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-4, msg=name)


def test_bfloat16_stays_near_float32(runs, mllama_dir, tmp_path):
    config = {**SHORT["config"], "precision": "bfloat16"}
    tiny_run.train(mllama_dir, tmp_path, batch_size=8, **{**SHORT, "config": config})
    wanted, found = losses(runs / "plain-short"), losses(tmp_path)
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0)
    assert not torch.allclose(found, wanted, rtol=1e-6)
    weights = AutoModelForImageTextToText.from_pretrained(tmp_path / "final").state_dict()
    assert any((w != w.bfloat16().float()).any() for w in weights.values())
