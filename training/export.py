"""A trained model as an HF folder: config, weights in safetensors shards, and everything beside them.

Tokenizer, processor, chat template, generation config and the stage plan come along unchanged from
the folder that training started from. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from stagebeam.training.checkpoint import CheckpointWriteError
from stagebeam.training.objective import SFTObjective
from stagebeam.training.world import World

logger = logging.getLogger(__name__)

METADATA = "stagebeam.json"
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf")


def export_model(
    objective: SFTObjective,
    source_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    world: World,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the HF folder `output`, replacing an earlier export; all ranks must call it.

    source_dir: where config files, tokenizer and extra files are copied from
    dtype:      of the stored weights; None keeps the source's
    metadata:   added to stagebeam.json (such as "add_bos", how prompts were built in training)
    """
    folder = Path(output)
    stored = dtype or _stored_dtype(objective, source_dir)
    weights = _gather_weights(objective, stored, world)
    failure = None
    if world.is_first:
        partial = folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _save_weights(objective, weights, stored, partial, max_shard_size)
            _copy_extras(Path(source_dir), partial)  # a generation config replaces the default one
            _write_metadata(partial, metadata or {})
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except (OSError, SafetensorError) as error:
            failure = str(error)
            shutil.rmtree(partial, ignore_errors=True)
    failure = world.from_first(failure)
    if failure is not None:
        raise CheckpointWriteError(f"cannot export the model to {folder}: {failure}")
    return folder


def _stored_dtype(objective: SFTObjective, source_dir: str | os.PathLike[str]) -> torch.dtype:
    config = json.loads((Path(source_dir) / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype")
    found = getattr(torch, name, None) if isinstance(name, str) else None
    return found if isinstance(found, torch.dtype) else torch.float32


def _gather_weights(
    objective: SFTObjective, dtype: torch.dtype, world: World
) -> dict[str, torch.Tensor]:
    """The full weights on rank 0's CPU, under HF's names; empty on other ranks."""
    weights = {}
    for name, value in objective.model.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if world.is_first:
            weights[name] = full.detach().to(
                "cpu", dtype if full.is_floating_point() else full.dtype
            )
    return weights


def _save_weights(
    objective: SFTObjective,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
    folder: Path,
    max_shard_size: str,
) -> None:
    model = objective.model
    before = model.config.dtype
    model.config.dtype = dtype
    try:
        model.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
    finally:
        model.config.dtype = before
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _copy_extras(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        is_written = path.name == "config.json" or path.name.endswith(_WEIGHT_SUFFIXES)
        if path.is_file() and not is_written:
            shutil.copyfile(path, folder / path.name)


def _write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    if not metadata:
        return
    path = folder / METADATA
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **metadata}, indent=2) + "\n", encoding="utf-8")
