"""Where an engine's time goes: a span for each pass it runs, taken without changing the engine.

Wraps the methods of one engine's loop while it is attached. Invariant: a detached engine is as it was
before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import torch

from stagebeam.engine.engine import Engine

SpanKind = Literal["image", "prefill", "judge", "decode", "verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Who had a row or a chunk in a pass; name is the stage's, "" for a judge's prompt."""

    question: int
    name: str
    index: int
    is_judging: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One pass; seconds by `time.perf_counter`.

    num_tokens: rows of the pass, of all its steps where it took several
    num_steps:  decode steps of the pass
    forward_seconds: inside the model and the sampler; the rest is the host's
    used_blocks: KV blocks in use after it
    """

    kind: SpanKind
    start: float
    end: float
    num_tokens: int
    lanes: tuple[Lane, ...]
    forward_seconds: float
    used_blocks: int
    num_steps: int = 1

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(slots=True)
class Recorder:
    """A context manager that fills `spans` while `engine` works."""

    engine: Engine
    spans: list[Span] = field(default_factory=list)
    _forward_seconds: float = 0.0
    _wrapped: list[tuple[Any, str]] = field(default_factory=list)
    _ops: Any = None

    def __enter__(self) -> Recorder:
        loop = self.engine._loop
        runner, decoder, prefills = loop._runner, loop._decoder, loop._prefills
        for name in ("forward", "logits", "decode_steps"):
            if hasattr(runner.model, name):  # only the native model takes whole steps
                self._wrap(runner.model, name, self._clocked)
        self._wrap(runner, "verdicts", self._clocked)
        self._ops = runner._ops
        runner._ops = replace(self._ops, sample_step=self._clocked(self._ops.sample_step))
        self._wrap(runner, "encode_image", self._encode)
        self._wrap(decoder, "step", self._step)
        self._wrap(prefills, "run_pass", self._pass)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for owner, name in self._wrapped:
            delattr(owner, name)  # the class's own method shows again
        self._wrapped.clear()
        self.engine._loop._runner._ops = self._ops

    def _wrap(self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Any]) -> None:
        setattr(owner, name, around(getattr(owner, name)))
        self._wrapped.append((owner, name))

    def _clocked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            if self.engine.device.type == "cuda":
                torch.cuda.synchronize(self.engine.device)
            self._forward_seconds += time.perf_counter() - began
            return result

        return run

    def _encode(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            self._add("image", began, 1, (), time.perf_counter() - began)
            return result

        return run

    def _step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(may_run_ahead: bool = False) -> tuple[int, list[Any]]:
            tracks = list(self.engine._loop._decoder._tracks.values())
            lanes = tuple(
                Lane(
                    question=track.question.id,
                    name=track.name or "",
                    index=track.index,
                    is_judging=track.is_judging,
                )
                for track in tracks
            )
            began, forward = time.perf_counter(), self._forward_seconds
            num_steps, finished = function(may_run_ahead)
            is_judging = all(lane.is_judging for lane in lanes)
            self._add(
                "verdict" if is_judging else "decode",
                began,
                len(lanes) * num_steps,
                lanes,
                self._forward_seconds - forward,
                num_steps,
            )
            return num_steps, finished

        return run

    def _pass(self, function: Callable[[], tuple[list[Any], list[Any]]]) -> Callable[[], Any]:
        def run() -> tuple[list[Any], list[Any]]:
            before = {id(job): job.next for job in self.engine._loop._prefills._jobs}
            began, forward = time.perf_counter(), self._forward_seconds
            jobs, done = function()
            self._add(
                "judge" if all(job.is_judging for job in jobs) else "prefill",
                began,
                sum(job.next - before[id(job)] for job in jobs),
                tuple(
                    Lane(question=job.question.id, name="", index=i, is_judging=job.is_judging)
                    for i, job in enumerate(jobs)
                ),
                self._forward_seconds - forward,
            )
            return jobs, done

        return run

    def _add(
        self,
        kind: SpanKind,
        began: float,
        num_tokens: int,
        lanes: tuple[Lane, ...],
        forward_seconds: float,
        num_steps: int = 1,
    ) -> None:
        self.spans.append(
            Span(
                kind=kind,
                start=began,
                end=time.perf_counter(),
                num_tokens=num_tokens,
                lanes=lanes,
                forward_seconds=forward_seconds,
                used_blocks=self.engine.kv_cache.pool.num_used,
                num_steps=num_steps,
            )
        )
