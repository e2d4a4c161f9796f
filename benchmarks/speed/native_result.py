"""The native race's document: each part's rounds beside where they come from.

Rounds of one part are only put together where settings, instruction set, machine, versions and commit
are the same, however many rounds are asked for; others are dropped when the part is measured again.
Measures nothing itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.speed.native_setting import Part, Record, Settings
from stagebeam.bindings import _cpu
from stagebeam.engine.machine import package_versions

FILE = "result.json"
PEERS = ("xllamacpp", "openvino-genai", "ctranslate2", "gguf")
_SAME = ("isa", "machine", "versions", "commit")


def read_result(folder: Path) -> dict[str, Any]:
    """The parts by name; empty where nothing was measured."""
    path = folder / FILE
    parts: dict[str, Any] = json.loads(path.read_text("utf-8"))["parts"] if path.exists() else {}
    return parts


class SavedPart:
    """One part's entry in the document."""

    def __init__(self, name: str, part: Part, settings: Settings, folder: Path) -> None:
        self._name, self._part, self._folder = name, part, folder
        machine = provenance.machine()
        # It says how PyTorch was set when asked, which the settings tell.
        del machine["torch_threads"]
        self._header = {
            "settings": json.loads(json.dumps(asdict(settings))),
            "isa": _cpu.active_isa(),
            "machine": machine,
            "versions": provenance.versions() | package_versions(PEERS),
            "commit": provenance.commit(),
        }
        self._wanted = 1 if part.is_once else settings.rounds
        saved = read_result(folder).get(name, {})
        self.records: list[Record] = saved["records"] if self._goes_on(saved) else []

    def _goes_on(self, saved: dict[str, Any]) -> bool:
        """Whether rounds to come may stand beside those saved."""
        if not saved or any(saved[key] != self._header[key] for key in _SAME):
            return False
        rounds = {"rounds": self._header["settings"]["rounds"]}
        return saved["settings"] | rounds == self._header["settings"]

    @property
    def next_round(self) -> int:
        return 1 + max((r["round"] for r in self.records), default=-1)

    @property
    def num_missing(self) -> int:
        """Rounds."""
        return max(self._wanted - self.next_round, 0)

    def forget(self) -> None:
        """Start over."""
        self.records = []

    def add(self, records: Sequence[Record], bandwidth: float) -> None:
        """A whole round, saved at once; bandwidth: of its moment."""
        number = self.next_round
        beside = {"round": number, "bandwidth": bandwidth}
        self.records += [beside | record for record in records]
        result = read_result(self._folder)
        result[self._name] = {
            "result": self._part.summarise(self.records),
            "records": self.records,
            "command": provenance.command(),
            **self._header,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f"{FILE}.part"
        unfinished.write_text(json.dumps({"parts": result}, indent=1) + "\n", "utf-8")
        os.replace(unfinished, self._folder / FILE)
