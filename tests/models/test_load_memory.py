"""Anonymous memory at its peak while weights are packed, held against the packed model.

One process a load, so that what one leaves behind hides nothing of the next.
"""

from __future__ import annotations

import mmap
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagebeam.benchmarks.speed.load_memory import AnonymousPeak, load_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def check(measured: dict[str, float]) -> None:
    assert measured["over_bar"] <= 1
    assert measured["peak_bytes"] > 0.9 * measured["packed_bytes"]  # it did see the packing


@pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "int8", "int4"])
def test_loading_takes_little_more_than_the_packed_model(smollm2_folder, weight_format) -> None:
    check(load_memory(smollm2_folder, weight_format))


@pytest.mark.parametrize("weight_format", ["float32", "int4"])
def test_so_does_a_checkpoint_of_two_bytes_a_weight(
    smollm2_folder, weight_format, tmp_path
) -> None:
    """Its largest tensor is half as large, and a float32 copy of it would be twice that."""
    for name in ("config.json", "generation_config.json"):
        shutil.copy(smollm2_folder / name, tmp_path)
    weights = load_file(smollm2_folder / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(load_memory(tmp_path, weight_format))


def test_what_is_held_for_a_moment_is_seen() -> None:
    with AnonymousPeak() as peak:
        # Pages of its own, not ones that an allocator kept.
        held = mmap.mmap(-1, 128 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        torch.frombuffer(held, dtype=torch.uint8).fill_(1)
        held.close()
    assert 120 << 20 < peak.num_bytes < 140 << 20
