"""Splits an answer's text, as it grows, into hidden reasoning and the reply.

The reply is what stands in the plan's last stage, up to a stop string; the stages before it, tags
included, are the reasoning. A text that does not begin with a stage is all reply. Invariant: what
was told is never taken back, so the pieces concatenate to what the whole text gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stagebeam.engine.events import Event, StageCommitted, StageStarted, TokenText
from stagebeam.engine.stages import StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What is sure of a text so far; `start` is where the reply begins in it."""

    reasoning: str = ""
    reply: str = ""
    start: int = 0
    is_stopped: bool = False


def split(text: str, plan: StagePlan, stop: Sequence[str] = (), *, is_whole: bool) -> Split:
    """Reasoning and reply of `text`; before it is whole, only what more text cannot change."""
    if not text.strip():
        return Split()
    last = plan.stages[-1]
    begin = text.lstrip()
    tags = [stage.open_tag for stage in plan.stages]
    if not begin.startswith(tuple(tags)):
        if not is_whole and any(tag.startswith(begin) for tag in tags):
            return Split()
        return _reply(text, "", 0, stop, is_whole)
    opening = text.find(last.open_tag)
    if opening < 0:
        told = text if is_whole else _hold_back(text, [last.open_tag])
        return Split(reasoning=told.strip())
    start = opening + len(last.open_tag)
    closing = text.find(last.close_tag, start)
    reply = text[start:] if closing < 0 else text[start:closing]
    if closing < 0 and not is_whole:
        reply = _hold_back(reply, [last.close_tag])
    return _reply(reply, text[:opening].strip(), start, stop, is_whole or closing >= 0)


def _reply(text: str, reasoning: str, start: int, stop: Sequence[str], is_closed: bool) -> Split:
    reply = text.lstrip()
    start += len(text) - len(reply)
    cuts = [cut for word in stop if (cut := reply.find(word)) >= 0]
    if cuts:
        reply = reply[: min(cuts)]
    elif not is_closed:
        reply = _hold_back(reply, stop).rstrip()
    else:
        reply = reply.rstrip()
    return Split(reasoning=reasoning, reply=reply, start=start, is_stopped=bool(cuts))


def _hold_back(text: str, words: Sequence[str]) -> str:
    """The text without an end that may be the beginning of one of the words."""
    longest = 0
    for word in words:
        for length in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:length]):
                longest = length
                break
    return text[: len(text) - longest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New text; (token id, logprob) of the tokens that hold the new text of the reply."""

    reasoning: str = ""
    reply: str = ""
    tokens: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, kw_only=True)
class Transcript:
    """Follows one question's events; a stage with one candidate is told as it is written, one with
    several once its winner is known."""

    plan: StagePlan
    stop: Sequence[str] = ()
    text: str = ""
    split: Split = field(default_factory=Split)
    tokens: list[tuple[int, float]] = field(default_factory=list)
    _pieces: list[tuple[int, TokenText]] = field(default_factory=list)  # (end in text, piece)
    _num_told: int = 0
    _is_alone: bool = False
    _open: dict[int, list[TokenText]] = field(default_factory=dict)

    def take(self, event: Event) -> Delta | None:
        """The new text that an event brings, if any."""
        match event:
            case StageStarted(num_candidates=count):
                self._is_alone = count == 1
                self._open = {}
            case TokenText() if self._is_alone:
                return self._add([event])
            case TokenText(candidate=candidate):
                self._open.setdefault(candidate, []).append(event)
            case StageCommitted(winner=winner) if not self._is_alone:
                return self._add(self._open.get(winner, []))
        return None

    def finish(self) -> Delta | None:
        """What had been held back, once the question is done."""
        return self._add([], is_whole=True)

    def _add(self, pieces: Sequence[TokenText], is_whole: bool = False) -> Delta | None:
        for piece in pieces:
            self.text += piece.text
            self._pieces.append((len(self.text), piece))
        before, now = self.split, split(self.text, self.plan, self.stop, is_whole=is_whole)
        self.split = now
        tokens: list[tuple[int, float]] = []
        while now.reply and self._num_told < len(self._pieces):
            end, piece = self._pieces[self._num_told]
            if end - len(piece.text) >= now.start + len(now.reply):
                break
            if end > now.start:
                tokens += zip(piece.token_ids, piece.logprobs, strict=True)
            self._num_told += 1
        self.tokens += tokens
        delta = Delta(
            reasoning=now.reasoning[len(before.reasoning) :],
            reply=now.reply[len(before.reply) :],
            tokens=tuple(tokens),
        )
        return delta if delta.reasoning or delta.reply or delta.tokens else None
