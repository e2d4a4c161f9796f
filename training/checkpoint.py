"""Checkpoints of a run: one folder a step, written whole or not at all.

Each rank writes its shard beside a manifest of sizes and SHA-256 sums; the folder takes its name
only when everything is on disk. A folder whose bytes differ from its manifest is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagebeam.engine.errors import CheckpointError, InvalidInputError
from stagebeam.training.world import World

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"step-\d{8}")
_MANIFEST = "manifest.json"
_STATE = "state.json"
_LEFTOVERS = (".partial", ".removed")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint folder and its trainer state."""

    folder: Path
    state: dict[str, Any]
    num_shards: int

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def shard(self, rank: int) -> Path:
        return self.folder / _shard_name(rank, self.num_shards)


class CheckpointWriteError(RuntimeError):
    """A checkpoint that could not be written; the ones before it are whole."""


def save_checkpoint(
    root: Path,
    tensors: Mapping[str, Tensor],
    state: dict[str, Any],
    world: World,
    *,
    keep_last: int,
) -> Path:
    """Write this step's checkpoint on all ranks; returns its folder.

    tensors: this rank's shard, by name; state: the same on all ranks, JSON-able, with "step".
    Raises CheckpointWriteError on every rank if any rank failed; nothing of it stays behind.
    """
    folder = root / f"step-{state['step']:08d}"
    partial = root / f"{folder.name}.partial"
    name = _shard_name(world.rank, world.size)
    failure = _attempt(lambda: _make_empty(partial)) if world.is_first else None
    failure = world.from_first(failure)
    entry: list[Any] = []
    if failure is None:
        failure = _attempt(lambda: entry.append(_write_shard(partial / name, tensors)))
    shards = world.gather((failure, name, entry))
    failures = [failed for failed, _, _ in shards if failed]
    if world.is_first:
        if not failures:
            files = {shard: written[0] for _, shard, written in shards}
            failed = _attempt(lambda: _finish(partial, folder, state, files, world.size))
            failures = [failed] if failed else []
        if failures:
            shutil.rmtree(partial, ignore_errors=True)
    failures = world.from_first(failures)
    if failures:
        kept = [str(path) for path in checkpoint_folders(root)[:1]]
        raise CheckpointWriteError(
            f"cannot write the checkpoint {folder}: {failures[0]}; "
            + (f"{kept[0]} is whole, resume from it" if kept else "there is no earlier one")
        )
    if world.is_first:
        for old in checkpoint_folders(root)[keep_last:]:
            _remove(old)
    return folder


def choose_checkpoint(root: Path, resume: str) -> Checkpoint | None:
    """What to go on from; None starts anew.

    resume: "auto" takes the newest whole checkpoint under `root`, if there is any; "never" refuses a
            `root` that holds checkpoints; anything else is a checkpoint folder's path
    """
    if resume == "auto":
        return latest_checkpoint(root)
    if resume != "never":
        return open_checkpoint(Path(resume))
    if checkpoint_folders(root):
        raise InvalidInputError(
            f"{root} holds checkpoints; resume from them or name another output folder"
        )
    return None


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint under `root` that is whole, or None where there is none at all.

    Damaged ones are passed over with a warning; if all are damaged, CheckpointError names each.
    """
    problems = []
    for folder in checkpoint_folders(root):
        try:
            return open_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("%s; falling back to the one before", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError("no checkpoint is whole: " + "; ".join(problems))
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify every byte of `folder`; raises CheckpointError saying which file is wrong and how."""
    manifest = _read_json(folder / _MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"checkpoint {folder}: {_MANIFEST} is not of format {_FORMAT}")
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint {folder}: {name} is missing")
        found = path.stat().st_size
        if found != size:
            raise CheckpointError(f"checkpoint {folder}: {name} has {found} of {size} bytes")
        if _sha256(path) != digest:
            raise CheckpointError(f"checkpoint {folder}: {name} is damaged (its SHA-256 differs)")
    state = _read_json(folder / _STATE)
    return Checkpoint(folder, state, manifest["num_shards"])


def checkpoint_folders(root: Path) -> list[Path]:
    """The finished checkpoint folders under `root`, newest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if _FOLDER.fullmatch(p.name)), reverse=True)


def read_full(checkpoint: Checkpoint, name: str) -> Tensor:
    """The whole tensor `name`, its shards joined along the first dimension."""
    parts = []
    for rank in range(checkpoint.num_shards):
        with safe_open(checkpoint.shard(rank), framework="pt") as file:
            parts.append(file.get_tensor(name))
    return parts[0] if parts[0].dim() == 0 else torch.cat(parts)


def _shard_name(rank: int, num_ranks: int) -> str:
    return f"shard-{rank:05d}-of-{num_ranks:05d}.safetensors"


def _attempt(action: Any) -> str | None:
    """Run `action`; the reason in words if the disk refused."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def _make_empty(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in folder.parent.iterdir():
        if path.suffix in _LEFTOVERS:  # of a save or a removal that was killed
            shutil.rmtree(path)
    folder.mkdir()


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _fsync(path)
    return path.stat().st_size, _sha256(path)


def _finish(
    partial: Path, folder: Path, state: dict[str, Any], files: dict[str, Any], num_shards: int
) -> None:
    _write_json(partial / _STATE, state)
    files[_STATE] = ((partial / _STATE).stat().st_size, _sha256(partial / _STATE))
    manifest = {"format": _FORMAT, "num_shards": num_shards, "files": files}
    _write_json(partial / _MANIFEST, manifest)
    _fsync(partial)
    if folder.exists():
        _remove(folder)
    partial.rename(folder)
    _fsync(folder.parent)


def _remove(folder: Path) -> None:
    # Renamed first, so that a removal cut short never looks like a checkpoint.
    doomed = folder.with_name(folder.name + ".removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    _fsync(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path.parent}: {path.name} cannot be read ({error})"
        ) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
