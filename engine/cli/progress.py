"""One line on a terminal that says where a running question is; nothing where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from stagebeam.engine.events import (
    CandidateFinished,
    Event,
    MatchJudged,
    StageCommitted,
    StageStarted,
    TokenText,
)

_REFRESH_SECONDS = 0.1


class ProgressLine:
    """Rewrites one line of `stream` as events come in; a context manager that clears it at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._stage = "starting"
        self._num_candidates = self._num_finished = self._num_matches = self._num_pieces = 0
        self._began = self._shown = time.perf_counter()

    def show(self, event: Event) -> None:
        """Take an event in and redraw, at most ten times a second."""
        match event:
            case StageStarted(stage=stage, num_candidates=num_candidates):
                self._stage, self._num_candidates = stage, num_candidates
                self._num_finished = self._num_matches = self._num_pieces = 0
            case TokenText():
                self._num_pieces += 1
            case CandidateFinished():
                self._num_finished += 1
            case MatchJudged():
                self._num_matches += 1
            case StageCommitted(stage=stage):
                self._stage = f"{stage} done"
        now = time.perf_counter()
        if self._is_terminal and now - self._shown >= _REFRESH_SECONDS:
            self._shown = now
            self._write(
                f"{self._stage}: {self._num_finished}/{self._num_candidates} candidates, "
                f"{self._num_pieces} tokens, {self._num_matches} matches, {now - self._began:.1f} s"
            )

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_terminal:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
