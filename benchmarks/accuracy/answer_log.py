"""One row's answers on disk, a JSON line each, so that a killed run goes on where it stood.

The first line says which run they belong to; a file of another run is begun anew. Invariant: the
file never holds a torn line followed by a whole one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One marked answer; `seconds` is the time since the answer before it, so they add up."""

    index: int
    kind: str
    question: str
    expected: str
    conclusion: str
    is_right: bool
    is_valid: bool
    completion_tokens: int
    judge_prompt_tokens: int
    judge_completion_tokens: int
    judge_calls: int
    disagreements: int
    malformed_verdicts: int
    seconds: float


_NAMES = {field.name for field in fields(Record)}


class AnswerLog:
    """Reads what an earlier run of the same settings left in `path`, and appends; a context manager.

    commit: of the code that answers; where answers go on, `commit` stays that of the first
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], commit: str | None = None) -> None:
        self.records: list[Record] = []
        self.commit = commit
        settings = json.loads(json.dumps(settings))  # as it will be read: tuples are lists
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last is torn
        whole = 0
        header = _parse(lines[0]) if lines else None
        if header is not None and header.get("settings") == settings:
            self.commit = header.get("commit")
            whole = len(lines[0]) + 1
            for line in lines[1:]:
                data = _parse(line)
                if data is None or set(data) != _NAMES:
                    break
                self.records.append(Record(**data))
                whole += len(line) + 1
        elif lines:
            logger.warning("%s is of another run (model or settings); beginning it anew", path)
        self._file = path.open("r+b" if whole else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write(json.dumps({"settings": settings, "commit": commit}))

    def add(self, record: Record) -> None:
        """Append and flush."""
        self.records.append(record)
        self._write(json.dumps(asdict(record), ensure_ascii=False))

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
