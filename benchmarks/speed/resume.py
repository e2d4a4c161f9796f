"""A measurement that goes on where it stopped: its records, kept in the document it writes.

Records are only taken over from a document of the same command on the same code, model and setting;
another's are left and written over.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.speed.measure import Records

SAME = ("schema_version", "kind", "title", "commit", "versions", "machine", "model", "setting")

logger = logging.getLogger(__name__)


class Resumed:
    """A document in the making; `save` writes it where `--output` says."""

    def __init__(self, document: dict[str, Any], options: argparse.Namespace, name: str) -> None:
        self.document = document
        self._path: Path | None = options.output / f"{name}.json" if options.output else None

    def records(self, names: Sequence[str]) -> Records:
        """Those that were saved, and room for the rest; part of the document from now on."""
        records: Records = {name: [] for name in names}
        saved = self._saved()
        if saved is not None:
            for name in names:
                records[name] += saved["records"].get(name, [])
            for key, value in saved["machine_speed"].items():  # interference only ever slows
                self.document["machine_speed"][key] = max(
                    value, self.document["machine_speed"][key]
                )
        self.document["records"] = records
        return records

    def _saved(self) -> dict[str, Any] | None:
        if self._path is None or not self._path.exists():
            return None
        saved: dict[str, Any] = json.loads(self._path.read_text("utf-8"))
        here = json.loads(json.dumps(self.document))
        differing = [key for key in SAME if saved.get(key) != here.get(key)]
        if differing:
            logger.warning("%s is of another %s: starting over", self._path, ", ".join(differing))
            return None
        return saved

    def save(self) -> None:
        """Write what there is so far; the file is whole at any time."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.document) + "\n", "utf-8")
        os.replace(part, self._path)
