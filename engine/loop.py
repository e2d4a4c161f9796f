"""The one place where policy meets mechanism: runs every policy, batches what they ask for.

A single thread owns the caches and the batch; callers hand it commands. Each turn admits waiting
questions, starts the requests that fit (the oldest question first), runs one prefill pass and one
decode step over all questions. Invariant: a question that ends, however it ends, holds nothing.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

from stagebeam.engine.branch import ROOT
from stagebeam.engine.decoding import Decoder
from stagebeam.engine.errors import CancelledError, CapacityError, DeadlineError
from stagebeam.engine.events import StageCommitted
from stagebeam.engine.judging import Judging
from stagebeam.engine.outputs import Match, SearchResult
from stagebeam.engine.prefill import PrefillQueue
from stagebeam.engine.question import Cache, Continue, LiveBranch, Question
from stagebeam.engine.sampling import Sampling
from stagebeam.engine.scheduler import PrefillJob
from stagebeam.engine.search.requests import (
    Commit,
    Gate,
    Judge,
    Release,
    Report,
    Request,
    Sample,
    Score,
)
from stagebeam.engine.step.batch import ImageRef
from stagebeam.engine.step.runner import ModelRunner

logger = logging.getLogger(__name__)


class EngineLoop:
    """Runs questions to their end on one background thread."""

    def __init__(
        self,
        runner: ModelRunner,
        decoder: Decoder,
        *,
        max_model_len: int,
        prefill_chunk_size: int,
        max_prefill_tokens: int,
    ) -> None:
        self._runner = runner
        self._decoder = decoder
        self.pool = runner.kv_cache.pool
        self._prefills = PrefillQueue(runner, prefill_chunk_size, max_prefill_tokens)
        self._sampling = Sampling(
            runner.kv_cache, decoder, runner.bank, max_model_len, self._prefills.add, self._answer
        )
        self._judging = Judging(
            runner.kv_cache,
            decoder,
            max_model_len,
            self._prefills.add,
            runner.verdicts,
            self._answer,
            self._pause,
        )
        self._waiting: deque[Question] = deque()
        self._running: list[Question] = []
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    # Callers' side: any thread.

    def submit(self, question: Question) -> None:
        """Queue a question; it is admitted in order of arrival."""
        self.call(lambda: self._waiting.append(question))

    def call(self, command: Callable[[], None]) -> None:
        """Run `command` on the loop's thread between two turns."""
        with self._lock:
            if self._is_closed:
                raise CancelledError("the engine is closed")
            self._commands.put(command)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stagebeam", daemon=True)
                self._thread.start()

    def stop(self, question: Question, error: BaseException) -> None:
        """End a question early with `error`; no effect on one that has ended."""
        with suppress(CancelledError):  # a closed engine ends every question anyway
            self.call(lambda: self._end(question, error))

    def num_questions(self) -> dict[str, int]:
        """Questions admitted, and those that wait for an image slot."""
        return {"num_running": len(self._running), "num_waiting": len(self._waiting)}

    def close(self) -> None:
        """Cancel every question and stop the thread; returns once it has stopped."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        if thread is None:
            return
        self._commands.put(lambda: None)  # wakes it
        if thread is not threading.current_thread():  # a collected engine may end on any thread
            thread.join()

    # The loop's side: its own thread.

    def _run(self) -> None:
        has_work = False
        while True:
            try:
                if not (has_work or self._is_closed):
                    with suppress(queue.Empty):
                        self._commands.get(timeout=self._seconds_to_deadline())()
                while not self._commands.empty():
                    self._commands.get()()
                if self._is_closed:
                    self._end_all()
                    return
                has_work = self._turn()
            except Exception as error:  # the thread must outlive a fault, and no caller may hang
                logger.exception("a step failed; every question in flight ends with its error")
                self._fail_all(error)

    def _end_all(self) -> None:
        """The engine is closed, so no command can join those that are queued."""
        while not self._commands.empty():
            self._commands.get()()
        self._fail_all(CancelledError("the engine was closed"))

    def _turn(self) -> bool:
        """Admit, start, prefill, decode; False where nothing could be done."""
        self._expire()
        num_admitted = self._admit()
        num_started = self._start_requests()
        has_passes = bool(self._prefills or self._decoder)
        if self._prefills:
            self._prefill_pass()
        if self._decoder:
            self._decode_step()
        return has_passes or num_admitted > 0 or num_started > 0

    def _seconds_to_deadline(self) -> float | None:
        """Until a question must end unanswered; None where none must."""
        deadlines = [q.deadline for q in [*self._running, *self._waiting] if q.deadline is not None]
        return max(0.0, min(deadlines) - time.perf_counter()) if deadlines else None

    def _expire(self) -> None:
        now = time.perf_counter()
        for question in [*self._running, *self._waiting]:
            if question.deadline is not None and now >= question.deadline:
                allowed = question.deadline - question.submitted_at
                self._end(question, DeadlineError(f"no answer within {allowed:g} seconds"))

    # What a pass cost is counted before its results are handed on: they may end a question, whose
    # listener reads the counts at once.

    def _prefill_pass(self) -> None:
        began = time.perf_counter()
        part, done = self._prefills.run_pass()
        jobs = {id(job.question): job for job in part}.values()
        for job in jobs:
            job.question.usage.prefill_passes += 1
        self._charge_prefill(jobs, began)
        began = time.perf_counter()
        for job, hidden in done:
            job.on_done(hidden)
        self._charge_prefill([job for job in jobs if job.question in self._running], began)

    def _charge_prefill(self, jobs: Collection[PrefillJob], began: float) -> None:
        seconds = (time.perf_counter() - began) / max(1, len(jobs))
        for job in jobs:
            self._charge(job.question, "judge" if job.is_judging else "prefill", seconds)

    def _decode_step(self) -> None:
        live = self._decoder.questions()
        began = time.perf_counter()
        # Prompts in the queue want to join soon: then one step at a time.
        num_steps, finished = self._decoder.step(may_run_ahead=not self._prefills)
        now = time.perf_counter()
        for question, is_judging in live:
            question.usage.decode_steps += 0 if is_judging else num_steps
            self._charge(question, "judge" if is_judging else "decode", (now - began) / len(live))
            if question.timings.time_to_first_token is None:
                question.timings.time_to_first_token = now - question.submitted_at
        for track in finished:
            track.on_finish(track)

    def _charge(self, question: Question, phase: str, seconds: float) -> None:
        setattr(question.timings, phase, getattr(question.timings, phase) + seconds)

    def _admit(self) -> int:
        """Take questions in as long as their images find a slot; returns how many."""
        num_admitted = 0
        while self._waiting:
            question = self._waiting[0]
            try:
                if question.image is not None and not self._take_slot(question):
                    break
            except Exception as error:  # encoding failed: no other question depends on it
                self._end(question, error)
                continue
            num_admitted += 1
            self._waiting.popleft()
            self._running.append(question)
            question.timings.queue = time.perf_counter() - question.submitted_at
            question.branches[ROOT.key] = LiveBranch(
                key=ROOT.key, token_ids=list(question.prompt_ids)
            )
            if question.policy is not None:
                self._advance(question, None)
            elif question.pending is not None:
                question.pending.set_result(None)
        return num_admitted

    def _take_slot(self, question: Question) -> bool:
        assert question.image is not None
        assert question.image_position is not None
        taken = self._runner.image_slots.acquire(question.image.key)
        if taken is None:
            return False
        slot, is_new = taken
        if is_new:
            began = time.perf_counter()
            try:
                self._runner.encode_image(question.image, slot)
            except BaseException:
                self._runner.image_slots.forget(slot)
                raise
            question.usage.image_encodes += 1
            question.timings.image_encode = time.perf_counter() - began
        spec = self._runner.model.spec
        question.image_ref = ImageRef(
            slot=slot,
            position=question.image_position,
            valid_tokens=question.image.num_tiles * spec.tokens_per_tile,
        )
        return True

    def _start_requests(self) -> int:
        """Start what fits, oldest first; where nothing runs and the oldest does not fit, make room."""
        num_started = 0
        for question in list(self._running):
            while question.request is not None and not question.is_in_flight:
                question.is_in_flight = True
                try:
                    is_started = self._start(question)
                except ValueError as error:  # the caller's plan or prompts; nothing was taken
                    self._refuse(question, error)
                    break
                if is_started:
                    num_started += 1
                    continue
                question.is_in_flight = False
                if any(other.is_in_flight for other in self._running):
                    return num_started  # what runs will end and free its blocks; nobody overtakes
                if not self._make_room(question):
                    self._give_up(question)
        return num_started

    def _start(self, question: Question) -> bool:
        match question.request:
            case Sample() as request:
                return self._sampling.start(question, request)
            case Continue() as request:
                return self._sampling.continue_(question, request)
            case Cache() as request:
                return self._sampling.cache(question, request)
            case Judge() | Gate() as request:
                return self._judging.start(question, request)
        raise AssertionError(f"not a request: {question.request!r}")

    def _make_room(self, question: Question) -> bool:
        """Drop cached blocks: of judge rounds, else of one question, the youngest first, this one's
        own last."""
        if self._judging.make_room():
            return True
        for victim in [*reversed([q for q in self._running if q is not question]), question]:
            keep = self._needed(question) if victim is question else set()
            dropped = [
                b for b in victim.branches.values() if b.seq is not None and b.key not in keep
            ]
            if dropped:
                self.pool.release([b.seq for b in dropped if b.seq is not None])
                for branch in dropped:
                    branch.seq = None
                logger.debug("dropped %d cached branches of question %d", len(dropped), victim.id)
                return True
        return False

    def _needed(self, question: Question) -> set[int]:
        """The branches a request goes on from; a judge's prompts need none of them."""
        match question.request:
            case Sample(prefix=prefix):
                return {prefix.key}
            case Continue(keys=keys):
                return set(keys)
        return set()

    def _give_up(self, question: Question) -> None:
        """Nothing else runs and it still does not fit: a judge's prompt is skipped, a sample fails."""
        if isinstance(question.request, (Judge, Gate)):
            self._judging.give_up(question)
            return
        self._refuse(
            question,
            CapacityError(
                f"a stage of this question needs more than the cache's {self.pool.num_blocks} "
                f"blocks of {self.pool.block_size} tokens (or more than max_branches rows); lower "
                "beam_size or max_tokens, or raise kv_cache_bytes or max_branches"
            ),
        )

    def _refuse(self, question: Question, error: ValueError) -> None:
        """A request cannot be done: its question ends, but a session's caller may ask for less."""
        if question.policy is not None or question.pending is None:
            self._end(question, error)
            return
        question.request = None
        question.is_in_flight = False
        question.pending.set_exception(error)

    def _pause(self, question: Question) -> None:
        """A judge round has more waves to go: it waits for its turn again."""
        question.is_in_flight = False

    def _answer(self, question: Question, result: Any) -> None:
        """A request is done: hand its result on."""
        question.request = None
        question.is_in_flight = False
        if question.policy is not None:
            self._advance(question, result)
        elif question.pending is not None:
            question.pending.set_result(result)

    def _advance(self, question: Question, value: Any) -> None:
        """Send a result to the policy and do what it asks next, up to a request that takes time."""
        assert question.policy is not None
        while True:
            try:
                request: Request = question.policy.send(value)
            except StopIteration as stop:
                self._end(question, stop.value)
                return
            except Exception as error:  # say a scorer's bad scores
                self._end(question, error)
                return
            value = None
            match request:
                case Sample() | Judge() | Gate():
                    question.request = request
                    return
                case Commit(branch=branch):
                    self.release(question, [key for key in question.branches if key != branch.key])
                case Release(branches=branches):
                    self.release(question, [branch.key for branch in branches])
                case Report(event=event):
                    self._count(question, event)
                    question.handle.emit(event)
                case Score(texts=texts):
                    assert question.scorer is not None, "a scored search was submitted without one"
                    try:
                        value = [float(score) for score in question.scorer(question.text, texts)]
                    except Exception as error:  # the caller's code
                        self._end(question, error)
                        return

    def _count(self, question: Question, event: Any) -> None:
        usage = question.usage
        match getattr(event, "match", None):
            case Match() as played:
                usage.disagreements += played.is_disagreement
                usage.malformed_verdicts += played.is_malformed_verdict
                usage.ties += played.is_tie
                usage.identical_matches += played.kind == "identical"
        if isinstance(event, StageCommitted):
            logger.debug("question %d committed %s", question.id, event.stage)

    def release(self, question: Question, keys: Iterable[int]) -> None:
        """Free branches of a question; the loop's thread only."""
        branches = [question.branches.pop(key) for key in keys]
        self.pool.release([branch.seq for branch in branches if branch.seq is not None])

    def _end(self, question: Question, outcome: SearchResult | BaseException) -> None:
        """Free what the question holds, then tell its caller; a second end has no effect."""
        if question in self._running:
            self._prefills.drop(question)
            self._decoder.drop(question)
            self._judging.drop(question)
            self.release(question, list(question.branches))
            if question.image_ref is not None:
                self._runner.image_slots.release(question.image_ref.slot)
            self._running.remove(
                question
            )  # last: who sees no question running finds all blocks free
        elif question in self._waiting:
            self._waiting.remove(question)
        else:
            return
        question.request = None
        if question.policy is not None:
            question.policy.close()
        question.timings.total = time.perf_counter() - question.submitted_at
        if isinstance(outcome, BaseException):
            question.handle.fail(outcome)
            if question.pending is not None and not question.pending.done():
                question.pending.set_exception(outcome)
            return
        try:
            question.finish(question, outcome)
        except Exception as error:  # the caller must hear of it
            question.handle.fail(error)

    def _fail_all(self, error: BaseException) -> None:
        for question in [*self._running, *self._waiting]:
            self._end(question, error)
