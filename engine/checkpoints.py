"""Where a checkpoint is: the bundled one, a folder, or a hub id that HF's cache or hub resolves."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from stagebeam.engine.errors import CheckpointError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED_CHECKPOINT = ASSETS / "shapes"
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model"]


def find_checkpoint(path: str | os.PathLike[str] | None) -> Path:
    """The folder of a checkpoint; None is the bundled one, a name with one "/" may be a hub id."""
    if path is None:
        return BUNDLED_CHECKPOINT
    folder = Path(path)
    if folder.exists() or not isinstance(path, str) or path.count("/") != 1 or path[0] in "./~":
        return folder
    try:
        return Path(snapshot_download(path, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{path!r} is no folder here and could not be had from the hub: {error}"
        ) from error
