"""The tensors of an HF folder's safetensors files: one file, or shards behind an index.

Files are memory-mapped and a tensor is read when it is asked for. Damage is found on opening, before
any weight is copied, and named: the file, and the tensor where one can be told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from stagebeam.engine.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class SafetensorsFiles(Mapping[str, Tensor]):
    """A checkpoint's tensors by their names in the files."""

    def __init__(self, folder: Path) -> None:
        weight_map = _read_index(folder)
        paths = sorted({folder / shard for shard in weight_map.values()}) or [folder / SINGLE_FILE]
        self._files: dict[str, safe_open] = {}
        for path in paths:
            file = _open(path)
            self._files.update((name, file) for name in file.keys())  # noqa: SIM118 (no mapping)
        absent = sorted(set(weight_map) - set(self._files))
        if absent:
            raise CheckpointError(
                f"{INDEX_FILE} places tensor {absent[0]!r} in {weight_map[absent[0]]!r}, which does "
                f"not have it ({len(absent)} such tensors); download the checkpoint again"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def part(self, name: str, dim: int, begin: int, end: int) -> Tensor:
        """Indices begin .. end - 1 of dimension 0 or 1; only they are read."""
        rows = self._files[name].get_slice(name)
        return rows[begin:end] if dim == 0 else rows[:, begin:end]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read_index(folder: Path) -> dict[str, str]:
    """Shard by tensor name; empty for a checkpoint in a single file."""
    path = folder / INDEX_FILE
    if not path.exists():
        if not (folder / SINGLE_FILE).exists():
            raise CheckpointError(
                f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; the weights must be in "
                "safetensors form (transformers' save_pretrained writes it)"
            )
        return {}
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors index: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map from tensor names to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{path} places tensor {name!r} in {shard!r}, expected a file name"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"shard {shard!r} with tensor {name!r} is missing from {folder}; download the "
                "checkpoint again"
            )
    return weight_map


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {_damage(path) or error}") from error


def _damage(path: Path) -> str | None:
    """What is wrong with a file that does not open, in words; None if it is not a known kind."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            return (
                f"the header should take {header_size} bytes but the file has {size}; it is "
                "truncated or not a safetensors file"
            )
        try:
            header = json.loads(file.read(header_size))
            ends = {k: v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "the header is corrupt; download the file again"
    data_size = size - 8 - header_size
    cut = sorted(
        (end, name) for name, end in ends.items() if isinstance(end, int) and end > data_size
    )
    if cut:
        return (
            f"the file is truncated: tensor {cut[0][1]!r} ends at byte {cut[0][0]} of the data but "
            f"only {data_size} are there; download the file again"
        )
    return None
