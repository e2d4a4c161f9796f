"""Checkpoints: killed and resumed bit for bit, cut short and refused, a full disk survived."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch

from stagebeam.engine.errors import CheckpointError, InvalidInputError
from stagebeam.training import checkpoint as checkpoint_module
from stagebeam.training.checkpoint import (
    CheckpointWriteError,
    checkpoint_folders,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from stagebeam.training.config import TrainConfig
from stagebeam.training.trainer import Trainer
from stagebeam.training.world import World

ALONE = World(0, 1, torch.device("cpu"), False)
RUN = {"kinds": "1t21t2t1", "steps": 24, "batch_size": 3, "config": {"save_interval": 3}}


@pytest.fixture(scope="module")
def undisturbed(mllama_dir, tmp_path_factory) -> Path:
    """A run that nothing interrupted, with all of its checkpoints."""
    output = tmp_path_factory.mktemp("undisturbed")
    tiny_run.train(mllama_dir, output, **{**RUN, "config": {"save_interval": 3, "keep_last": 99}})
    return output


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it or clean up after it."""


def same_weights(first: Path, second: Path) -> bool:
    name = "model.safetensors"
    return (first / "final" / name).read_bytes() == (second / "final" / name).read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_killed_in_a_save_and_resumed_bit_for_bit(
    mllama_dir, tmp_path, undisturbed, monkeypatch, seed
):
    generator = random.Random(seed)
    calls = dict.fromkeys(("_fsync", "_sha256", "_write_json", "save_file", "_remove"), 0)
    victim = generator.choice(sorted(calls))
    fatal = generator.randrange(1, 6)

    def kill_at(name):
        original = getattr(checkpoint_module, name)

        def run(*args):
            calls[name] += 1
            if name == victim and calls[name] == fatal:
                if generator.random() < 0.5:
                    original(*args)
                raise Killed
            return original(*args)

        return run

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(checkpoint_module, name, kill_at(name))
        with pytest.raises(Killed):
            tiny_run.train(mllama_dir, tmp_path, **RUN)
    tiny_run.train(mllama_dir, tmp_path, **RUN)
    assert tiny_run.read_losses(tmp_path) == tiny_run.read_losses(undisturbed)
    assert same_weights(tmp_path, undisturbed)
    assert not list((tmp_path / "checkpoints").glob("*.removed"))
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_sigkill_at_a_random_step(mllama_dir, tmp_path, undisturbed):
    step = random.randrange(4, 20)
    process = tiny_run.start(mllama_dir, [{**RUN, "output": tmp_path}])
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            process.kill()
        time.sleep(0.005)
    process.communicate()
    tiny_run.train(mllama_dir, tmp_path, **RUN)
    found, wanted = tiny_run.read_losses(tmp_path), tiny_run.read_losses(undisturbed)
    assert found == wanted, f"killed at step {step}"
    assert same_weights(tmp_path, undisturbed)


def test_sigterm_saves_and_the_same_call_goes_on(mllama_dir, tmp_path, undisturbed):
    def stop(step, folder):
        os.kill(os.getpid(), 15)

    config = {**RUN["config"], "eval_interval": 5}
    progress = tiny_run.train(mllama_dir, tmp_path, eval_fn=stop, **{**RUN, "config": config})
    assert progress.step == 6
    assert checkpoint_folders(tmp_path / "checkpoints")[0].name == "step-00000006"
    assert not (tmp_path / "final").exists()
    tiny_run.train(mllama_dir, tmp_path, **RUN)
    assert tiny_run.read_losses(tmp_path) == tiny_run.read_losses(undisturbed)


@pytest.mark.parametrize("options", [{"num_workers": 3}, {"log_interval": 1}])
def test_resume_from_any_checkpoint(mllama_dir, tmp_path, undisturbed, options):
    wanted = tiny_run.read_losses(undisturbed)
    for folder in checkpoint_folders(undisturbed / "checkpoints")[1::3]:
        output = tmp_path / folder.name
        run = {**RUN, "config": {**RUN["config"], **options}}
        tiny_run.train(mllama_dir, output, start_from=folder, **run)
        assert tiny_run.read_losses(output) == wanted[int(folder.name[-8:]) :]


@pytest.fixture
def two_checkpoints(undisturbed, tmp_path) -> Path:
    for folder in checkpoint_folders(undisturbed / "checkpoints")[:2]:
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


def test_cut_off_anywhere_falls_back(two_checkpoints, caplog):
    newest, older = checkpoint_folders(two_checkpoints)
    assert latest_checkpoint(two_checkpoints).folder == newest
    generator = random.Random(7)
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        offsets = {0, 1, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(40))}
        for offset in sorted(offsets):
            path.write_bytes(whole[:offset])
            with pytest.raises(CheckpointError, match=path.name):
                open_checkpoint(newest)
        caplog.clear()
        assert latest_checkpoint(two_checkpoints).folder == older
        assert "falling back" in caplog.text
        assert path.name in caplog.text
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            open_checkpoint(newest)
        path.write_bytes(whole)
    assert latest_checkpoint(two_checkpoints).folder == newest


def test_a_flipped_bit_is_seen(two_checkpoints):
    newest = checkpoint_folders(two_checkpoints)[0]
    shard = newest / "shard-00000-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(newest)


def test_all_damaged_is_refused_and_names_each(two_checkpoints, mllama_dir):
    folders = checkpoint_folders(two_checkpoints)
    for folder in folders:
        (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"{folders[0].name}.*{folders[1].name}"):
        latest_checkpoint(two_checkpoints)


TENSORS = {"weight/a": torch.randn(300, 40), "step/a": torch.tensor(3.0)}


def save(root: Path, step: int) -> Path:
    return save_checkpoint(root, TENSORS, {"step": step}, ALONE, keep_last=2)


def test_full_disk_by_limit_keeps_the_previous(tmp_path):
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CheckpointWriteError, match=r"(?i)too large.*step-00000001 is whole"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert latest_checkpoint(tmp_path).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_full_disk_anywhere_in_a_save(tmp_path, monkeypatch):
    save(tmp_path, 1)
    for fatal in range(6):
        calls = 0
        original = checkpoint_module._fsync

        def fsync(path, fatal=fatal, original=original):
            nonlocal calls
            calls += 1
            if calls > fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            original(path)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module, "_fsync", fsync)
            if fatal < 5:
                with pytest.raises(CheckpointWriteError, match="No space left"):
                    save(tmp_path, 2 + fatal)
            else:
                save(tmp_path, 2 + fatal)
        assert latest_checkpoint(tmp_path).step >= 1
        assert not list(tmp_path.glob("*.partial"))


def test_keep_last_and_leftovers_of_killed_saves(tmp_path):
    (tmp_path / "step-00000009.partial").mkdir()
    (tmp_path / "step-00000008.removed").mkdir()
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_other_data_or_used_output_is_refused(two_checkpoints, mllama_dir, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(two_checkpoints, output / "checkpoints", ignore=lambda *_: {"out"})
    config = TrainConfig(show_progress=False)
    phases = tiny_run.make_phases("1t21t2t1t", 24, 3)
    with pytest.raises(CheckpointError, match="same data and global batch"):
        Trainer(mllama_dir, output, config, phases).train()
    with pytest.raises(InvalidInputError, match="holds checkpoints"):
        Trainer(mllama_dir, output, config, phases).train(resume="never")


def test_a_loss_that_is_not_finite_ends_the_run_unsaved(mllama_dir, tmp_path):
    phases = [replace(p, learning_rate=1e20) for p in tiny_run.make_phases("1t21", 12, 2)]
    config = TrainConfig(show_progress=False, save_interval=1, log_interval=5)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        Trainer(mllama_dir, tmp_path, config, phases).train()
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is None or saved.step < 12
