"""Where a measurement comes from: machine, versions, commit, command and the model's content."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.machine import cpu_name, num_cores, package_versions

ROOT = Path(__file__).resolve().parents[1]  # the checkout, or site-packages/stagebeam
PACKAGES = ("stagebeam", "torch", "transformers", "tokenizers", "numpy", "pillow")
CODE = (".", ":!benchmarks/results", ":!docs", ":!README.md")
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model")


def machine() -> dict[str, Any]:
    """The hardware that bears on a measurement."""
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "platform": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python's and the packages' that matter."""
    return package_versions(PACKAGES)


def commit() -> str | None:
    """The checkout's commit, "+changes" where its code differs from it; None outside of one.

    Recorded results and the documents they are written into are no code.
    """
    if not (ROOT / ".git").exists():
        return None
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        has_changes = bool(_git("status", "--porcelain", "--untracked-files=no", "--", *CODE))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}+changes" if has_changes else name


def command() -> str:
    """The command line, without the path of the interpreter or script."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    module = main.name if main else "stagebeam.cli"
    start = ["stagebeam"] if module == "stagebeam.cli" else ["python", "-m", module]
    return shlex.join([*start, *sys.argv[1:]])


def model(folder: Path) -> dict[str, str]:
    """The checkpoint's path, from the checkout or from ~ where it lies inside, and its content's hash."""
    resolved, home = folder.resolve(), Path.home()
    path = str(folder)
    if resolved.is_relative_to(ROOT):
        path = resolved.relative_to(ROOT).as_posix()
    elif resolved.is_relative_to(home):
        path = f"~/{resolved.relative_to(home).as_posix()}"
    is_bundled = resolved == BUNDLED_CHECKPOINT.resolve()
    return {
        "path": f"{path} (bundled)" if is_bundled else path,
        "sha256": content_hash(folder),
    }


def content_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that a checkpoint consists of."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in MODEL_FILES:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
