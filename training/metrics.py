"""A run's numbers: `metrics.jsonl`, TensorBoard where it is installed, and the progress bar.

Rank 0 only. A resumed run drops the lines past the step it resumes from, so the file stays one
series.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

try:
    from torch.utils.tensorboard.writer import SummaryWriter
except ImportError:  # tensorboard is an optional dependency
    SummaryWriter = None  # type: ignore[assignment, misc]

logger = logging.getLogger(__name__)


class Metrics:
    """Writes one line of metrics at a time; a context manager."""

    def __init__(
        self, output: Path, *, first_step: int, num_steps: int, show_progress: bool
    ) -> None:
        self._path = path = output / "metrics.jsonl"
        _drop_after(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        if SummaryWriter is None:
            logger.info("tensorboard is not installed; metrics go to %s only", path)
        else:
            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not show_progress or not sys.stderr.isatty(),
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line for `step`, numbers or strings by name; raises OSError naming the file."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    group, _, rest = name.partition("_")
                    tag = f"{group}/{rest}" if group in ("loss", "eval") and rest else name
                    self._board.add_scalar(tag, value, step)

    def show(self, step: int, values: Mapping[str, str]) -> None:
        """Move the progress bar to `step`."""
        self._bar.set_postfix(values, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # what does not fit on the disk was told by write
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            logger.warning("%s: dropped a damaged line", path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
