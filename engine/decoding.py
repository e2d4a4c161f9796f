"""The decode batch of all questions: live branches join, tokens come out, finished ones leave.

Owns the batch and each branch's growing output. Does not know why a branch is decoded: a candidate
of a stage and a generated verdict are the same to it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from stagebeam.engine.branch import FinishReason
from stagebeam.engine.events import CandidateFinished, TokenText
from stagebeam.engine.question import Question
from stagebeam.engine.step.batch import DecodeBatch, DecodeRow
from stagebeam.engine.step.runner import ModelRunner


@dataclass(slots=True, kw_only=True)
class Track:
    """One branch's output while it is decoded.

    name, round, index: what events call it; name None tells nobody (a verdict)
    on_finish:   called once, after the branch has left the batch
    untold:      (token id, logprob) of tokens whose text no event has told yet
    """

    question: Question
    row: DecodeRow
    on_finish: Callable[[Track], None]
    name: str | None
    index: int
    round: int = 0
    is_judging: bool = False
    untold: list[tuple[int, float]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason = "aborted"
    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def new_text(self, piece: bytes, is_last: bool) -> str:
        """The characters that `piece` completes."""
        return self._utf8.decode(piece, is_last)


class Decoder:
    """Steps every live branch of every question as one batch."""

    def __init__(
        self,
        runner: ModelRunner,
        token_bytes: Sequence[bytes | None],
        max_branches: int,
        device: torch.device,
    ) -> None:
        self._runner = runner
        self._token_bytes = token_bytes
        self._batch = DecodeBatch(device)
        self._tracks: dict[int, Track] = {}
        self._max_branches = max_branches
        self._promised: dict[int, int] = {}  # rows by question id
        self._next_group = 0

    def __len__(self) -> int:
        return len(self._batch)

    def bytes_of(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of sampled tokens; special tokens have none."""
        return b"".join(self._token_bytes[token_id] or b"" for token_id in token_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """Those bytes as UTF-8."""
        return self.bytes_of(token_ids).decode("utf-8", "replace")

    def promise(self, question: Question, num_rows: int) -> bool:
        """Hold rows for branches that join after their prefill; False where there are not enough."""
        held = sum(self._promised.values())
        if len(self._batch) + held + num_rows > self._max_branches:
            return False
        self._promised[question.id] = self._promised.get(question.id, 0) + num_rows
        return True

    def take_back(self, question: Question, num_rows: int) -> None:
        """Undo a promise whose branches will not join."""
        self._promised[question.id] -= num_rows

    def new_group(self) -> int:
        self._next_group += 1
        return self._next_group

    def join(self, tracks: Sequence[Track]) -> None:
        """Start decoding promised branches that share a trunk."""
        self.take_back(tracks[0].question, len(tracks))
        self._batch.add([track.row for track in tracks])
        self._tracks.update((track.row.seq, track) for track in tracks)

    def drop(self, question: Question) -> None:
        """Take a question's branches out without finishing them, and its promises back."""
        self._promised.pop(question.id, None)
        gone = {seq for seq, track in self._tracks.items() if track.question is question}
        for seq in gone:
            del self._tracks[seq]
        if gone:
            self._batch.remove(gone)

    def questions(self) -> list[tuple[Question, bool]]:
        """(question, whether it is judging) of each live branch's question, without repeats."""
        return list(
            {id(t.question): (t.question, t.is_judging) for t in self._tracks.values()}.values()
        )

    def step(self, may_run_ahead: bool = False) -> tuple[int, list[Track]]:
        """One decode step, or several if allowed: their number and the branches that finished in the
        last one, which have left; the caller is to `on_finish` them."""
        result = self._runner.decode(self._batch, may_run_ahead)
        finished: list[Track] = []
        rows = zip(
            list(self._batch.rows), result.token_ids, result.logprobs, result.finish, strict=True
        )
        for row, token_ids, logprobs, finish in rows:
            track = self._tracks[row.seq]
            track.token_ids += token_ids
            for logprob in logprobs:  # one by one, however many steps a call took
                track.cumulative_logprob += logprob
            if finish is not None:
                track.finish_reason = finish
                finished.append(track)
            if track.name is not None and track.question.handle.has_listener:
                self._tell(track, token_ids, logprobs, finish)
        if finished:
            self._batch.remove({track.row.seq for track in finished})
            for track in finished:
                del self._tracks[track.row.seq]
        return result.num_steps, finished

    def _tell(
        self,
        track: Track,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        finish: FinishReason | None,
    ) -> None:
        name, handle = track.name or "", track.question.handle
        for i, (token_id, logprob) in enumerate(zip(token_ids, logprobs), start=1):
            track.untold.append((token_id, logprob))
            is_last = finish is not None and i == len(token_ids)
            text = track.new_text(self._token_bytes[token_id] or b"", is_last)
            if not text:
                continue
            told_ids, told_logprobs = zip(*track.untold)
            track.untold.clear()
            handle.emit(
                TokenText(
                    stage=name,
                    round=track.round,
                    candidate=track.index,
                    text=text,
                    token_ids=told_ids,
                    logprobs=told_logprobs,
                )
            )
        if finish is not None:
            handle.emit(
                CandidateFinished(
                    stage=name, round=track.round, candidate=track.index, finish_reason=finish
                )
            )
