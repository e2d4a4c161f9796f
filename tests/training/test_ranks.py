"""One rank, two ranks and plain: the same losses from the same global batches."""

from __future__ import annotations

import pytest
import tiny_run
import torch
from transformers import AutoModelForImageTextToText

KINDS = "1t21t2t112tt" * 3


@pytest.fixture(scope="module")
def runs(mllama_dir, tmp_path_factory):
    """50 steps over images and text: plain, sharded on one rank, on two, and on two in halves."""
    root = tmp_path_factory.mktemp("ranks")
    common = {"kinds": KINDS, "steps": 50, "config": {"save_interval": 0, "max_grad_norm": 2.0}}
    options = {
        "one": {"num_ranks": 1, "batch_size": 8},
        "two": {"num_ranks": 2, "batch_size": 4},
        "checkpointed": {
            "num_ranks": 2,
            "batch_size": 4,
            "config": {**common["config"], "activation_checkpointing": True, "num_workers": 2},
        },
    }
    started = [tiny_run.start(mllama_dir, root / n, **{**common, **o}) for n, o in options.items()]
    tiny_run.train(mllama_dir, root / "plain", batch_size=8, **common)
    for process in started:
        tiny_run.finish(process)
    return root


@pytest.mark.parametrize("name", ["one", "two", "checkpointed"])
def test_losses_do_not_depend_on_the_ranks(runs, name):
    plain = torch.tensor(tiny_run.read_losses(runs / "plain"), dtype=torch.float64)
    found = torch.tensor(tiny_run.read_losses(runs / name), dtype=torch.float64)
    assert len(plain) == 50
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=0)
    assert plain[-5:].mean() < plain[:5].mean()


def test_exports_hold_the_same_weights(runs):
    load = AutoModelForImageTextToText.from_pretrained
    plain = load(runs / "plain" / "final").state_dict()
    two = load(runs / "two" / "final").state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-4, msg=name)


def test_a_rank_with_text_only_rows_waits_for_nobody(mllama_dir, tmp_path):
    # Rows alternate so that, unshuffled or not, some micro-batches give one rank only text.
    common = {"kinds": "1t", "steps": 12, "config": {"save_interval": 0}}
    two = tiny_run.start(mllama_dir, tmp_path / "two", num_ranks=2, batch_size=1, **common)
    tiny_run.train(mllama_dir, tmp_path / "plain", batch_size=2, **common)
    tiny_run.finish(two)
    plain, found = (
        torch.tensor(tiny_run.read_losses(tmp_path / name)) for name in ("plain", "two")
    )
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=0)
