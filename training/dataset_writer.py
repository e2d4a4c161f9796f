"""Writes a data set in the LLaVA-CoT-100k layout: `train.jsonl`, its images, and how it was made.

The folder appears whole or not at all, and an existing one is never touched. Knows nothing of what
the rows say; data.py reads them back.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stagebeam.engine.errors import InvalidInputError

ROWS, RECORD = "train.jsonl", "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """One single-turn conversation to write.

    image_name: path of the image in the folder, None for a text-only row; rows may share one
    image:      a picture (written as PNG) or a file to copy; read once per name
    """

    identity: str
    user: str
    reply: str
    image_name: str | None = None
    image: Image.Image | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a data set's folder holds."""

    folder: Path
    num_rows: int
    num_images: int


def write_dataset(
    output: str | os.PathLike[str], rows: Iterable[NewRow], record: Mapping[str, Any]
) -> Written:
    """Write `rows` to the new folder `output`; `record` goes to dataset.json with the counts.

    Raises InvalidInputError where `output` is there and not an empty folder, OSError where the disk
    does not take it; nothing is left behind then.
    """
    folder = Path(output)
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        num_rows, num_images = _write_rows(partial, rows)
        counts = {"num_rows": num_rows, "num_images": num_images}
        text = json.dumps({**record, **counts}, indent=2, ensure_ascii=False)
        (partial / RECORD).write_text(text + "\n", encoding="utf-8")
        check_output(folder)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Written(folder=folder, num_rows=num_rows, num_images=num_images)


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something, or a file of that name."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise InvalidInputError(
                f"{folder} is there already and not empty; data sets are never overwritten: name a "
                "new folder or remove that one"
            )
    elif folder.exists():
        raise InvalidInputError(f"{folder} is a file; expected the name of a new folder")


def _write_rows(folder: Path, rows: Iterable[NewRow]) -> tuple[int, int]:
    names: set[str] = set()
    num_rows = 0
    with open(folder / ROWS, "w", encoding="utf-8") as file:
        for row in rows:
            data: dict[str, Any] = {"id": row.identity}
            if row.image_name is not None:
                data["image"] = row.image_name
                if row.image_name not in names:
                    names.add(row.image_name)
                    _write_image(folder / row.image_name, row.image)
            data["conversations"] = [
                {"from": "human", "value": row.user},
                {"from": "gpt", "value": row.reply},
            ]
            file.write(json.dumps(data, ensure_ascii=False) + "\n")
            num_rows += 1
        file.flush()
        os.fsync(file.fileno())
    return num_rows, len(names)


def _write_image(path: Path, image: Image.Image | Path | None) -> None:
    assert image is not None, f"the row of {path.name} has no image"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        shutil.copyfile(image, path)
    else:
        image.save(path, format="PNG")
