"""Two gloo ranks give the tokens of one, and each holds half of the weights."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, MllamaConfig, MllamaForConditionalGeneration

from stagebeam import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.models.sharding import RankTensors, rank_spec

CONFIGS = Path(__file__).parents[1] / "models"
SCRIPT = Path(__file__).with_name("tensor_parallel_run.py")


def run(folder: Path, image_path: Path, output: Path, size: int) -> list[dict]:
    """Start `size` ranks (one without a process group for 1) and return what each wrote."""
    output.mkdir()
    command = [sys.executable, str(SCRIPT), str(folder), str(image_path), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if size == 1:
        subprocess.run(command, check=True, env=environment, timeout=600)
        return [json.loads((output / "rank0.json").read_text())]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    ranks = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    processes = [
        subprocess.Popen(command, env={**environment, **ranks, "RANK": str(rank)})
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="session")
def tied(llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text checkpoint with its embedding for a head."""
    folder = tmp_path_factory.mktemp("tiny-tied")
    for path in llama.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] += tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = True
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["mllama", "tied"])
def test_two_ranks_give_the_tokens_of_one(kind, mllama, tied, image, tmp_path) -> None:
    folder = mllama.folder if kind == "mllama" else tied
    image.save(tmp_path / "image.png")
    (one,) = run(folder, tmp_path / "image.png", tmp_path / "one", 1)
    two = run(folder, tmp_path / "image.png", tmp_path / "two", 2)
    assert len(one["answers"]) >= 4
    assert two[0]["answers"] == one["answers"]
    assert "answers" not in two[1]
    # What is whole everywhere is more than a tenth of the half in the tiny vision tower alone.
    for rank in two:
        assert rank["bytes"] == pytest.approx(one["bytes"] / 2, rel=0.1 if kind == "tied" else 0.12)


@pytest.mark.parametrize("size", ["11b", "90b"])
def test_a_rank_of_a_real_model_holds_half_of_its_weights(size) -> None:
    config = MllamaConfig.from_pretrained(CONFIGS / f"llama-3.2-{size}-vision.json")
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in MllamaForConditionalGeneration(config).state_dict().items()
        }

    class Files(dict):
        """Shapes in the place of a checkpoint's files."""

        def shape(self, name: str) -> tuple[int, ...]:
            return shapes[name]

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        parts = RankTensors(Files(shapes), DeviceMesh("cpu", [0, 1]))._parts
    finally:
        torch.distributed.destroy_process_group()
    whole = sum(math.prod(shape) for shape in shapes.values())
    held = 0
    for name, shape in shapes.items():
        dim, length = parts.get(name, (0, shape[0]))
        held += math.prod(shape) // shape[dim] * length
    assert held == pytest.approx(whole / 2, rel=0.1)


def test_heads_that_cannot_be_shared_are_refused(mllama) -> None:
    with pytest.raises(InvalidInputError, match="4 ranks cannot share num_key_value_heads 2"):
        rank_spec(read_spec(mllama.folder), 4)


def test_a_process_on_its_own_is_refused(mllama) -> None:
    with pytest.raises(InvalidInputError, match="start it with torchrun"):
        Engine(mllama.folder, device="cpu", tensor_parallel=True)
