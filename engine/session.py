"""The low level, for embedding: branches as values that a caller forks, decodes, scores and commits.

A session is a question whose caller takes the policy's place; its work shares batches with every
other question. Invariant: `root.release()` (or leaving `with`) frees all that the session holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from stagebeam.engine.branch import ROOT, Branch, FinishReason
from stagebeam.engine.errors import CancelledError, InvalidInputError
from stagebeam.engine.judge.tournament import sigmoid
from stagebeam.engine.loop import EngineLoop
from stagebeam.engine.outputs import Usage
from stagebeam.engine.params import SamplingParams
from stagebeam.engine.question import Cache, Continue, LiveBranch, Question
from stagebeam.engine.search.requests import Judge, Pair, Sample, Until, Verdict

T = TypeVar("T")

TRUNK_KEY = ROOT.key


class Session:
    """One opened question and the live branches its caller holds."""

    def __init__(self, loop: EngineLoop, question: Question, max_branches: int) -> None:
        self.question = question
        self._loop = loop
        self._max_branches = max_branches
        self._num_rounds = 0
        self.snapshots: set[int] = set()
        # Weakly: a circle would wait for a garbage collection, and the image with it.
        self._trunk: weakref.ref[BranchRef] | None = None
        admitted: Future[Any] = Future()
        question.pending = admitted
        loop.submit(question)
        admitted.result()
        try:
            self.ask(Cache(key=TRUNK_KEY))
        except ValueError:
            self.end()
            raise

    def trunk(self) -> BranchRef:
        """The root branch, for the caller to hold."""
        ref = BranchRef(self, TRUNK_KEY)
        self._trunk = weakref.ref(ref)
        return ref

    def on_loop(self, work: Callable[[], T]) -> T:
        """Run `work` on the loop's thread and wait for its result."""
        future: Future[T] = Future()

        def command() -> None:
            if self.question.handle.done():
                future.set_exception(InvalidInputError("this session has been released"))
                return
            try:
                future.set_result(work())
            except Exception as error:  # for this caller, who waits; the loop goes on
                future.set_exception(error)

        self._loop.call(command)
        return future.result()

    def ask(self, request: Any, keys: Sequence[int] = ()) -> Any:
        """Have the loop do a request of this session, one at a time, and wait for its result.

        keys: the branches that it is about, which must be live
        """
        pending: Future[Any] = Future()

        def start() -> None:
            if self.question.request is not None:
                raise InvalidInputError("this session is busy; wait for its other call to return")
            for key in keys:
                self._branch(key)
            self.question.pending = pending
            self.question.request = request

        self.on_loop(start)
        return pending.result()

    def decode(
        self, branches: Sequence[BranchRef], until: Until, sampling: SamplingParams
    ) -> list[Branch]:
        if len(branches) > self._max_branches:
            raise InvalidInputError(
                f"{len(branches)} branches exceed max_branches {self._max_branches}; raise it or "
                "decode fewer at once"
            )
        keys = tuple(ref.key for ref in branches)
        if len(set(keys)) != len(keys):
            raise InvalidInputError("a branch can be decoded once at a time; fork it first")
        self._num_rounds += 1
        sample = Sample(
            prefix=ROOT,
            n=len(branches),
            until=until,
            sampling=sampling,
            name="decode",
            stage=0,
            round=self._num_rounds,
        )
        results = self.ask(Continue(keys=keys, sample=sample), keys)
        for ref, result in zip(branches, results, strict=True):
            ref.last = result
        return results

    def score(
        self,
        pairs: Sequence[tuple[BranchRef, BranchRef]],
        criterion: str,
        hints: Sequence[tuple[str, str]],
    ) -> list[float]:
        self._num_rounds += 1
        judged = tuple(
            Pair(first=a.inner, second=b.inner, index=i) for i, (a, b) in enumerate(pairs)
        )
        verdicts: list[Verdict] = self.ask(
            Judge(pairs=judged, criterion=criterion, hints=tuple(hints), round=self._num_rounds)
        )
        return [sigmoid(verdict.log_odds) for verdict in verdicts]

    def new_branches(self, key: int, n: int) -> list[BranchRef]:
        """Fork by reference: nothing is copied until somebody writes."""

        def fork() -> list[int]:
            parent = self._branch(key)
            seqs: list[int | None] = [None] * n
            if parent.seq is not None:
                forked = self._loop.pool.fork(parent.seq, n, 0)
                assert forked is not None, "a fork without a reservation always fits"
                seqs = list(forked)
            return [self.question.fork(parent, seq).key for seq in seqs]

        return [BranchRef(self, new_key) for new_key in self.on_loop(fork)]

    def move(self, source: int, target: int) -> None:
        """Make `target` stand where `source` stands."""

        def move() -> None:
            branch, old = self._branch(source), self._branch(target)
            seq = None if branch.seq is None else self._loop.pool.snapshot(branch.seq)
            if old.seq is not None:
                self._loop.pool.release([old.seq])
            self.question.branches[target] = replace(
                branch, key=target, token_ids=list(branch.token_ids), seq=seq
            )

        self.on_loop(move)

    def commit(self, ref: BranchRef) -> None:
        """Make the trunk stand where `ref` does and free all but it and the snapshots."""
        if ref.key != TRUNK_KEY:
            self.move(ref.key, TRUNK_KEY)
            trunk = self._trunk() if self._trunk is not None else None
            if trunk is not None:
                trunk.last = ref.last
        keep = {TRUNK_KEY, *self.snapshots}

        def drop() -> None:
            gone = [key for key in self.question.branches if key not in keep]
            self._loop.release(self.question, gone)

        self.on_loop(drop)

    def drop(self, key: int) -> None:
        self.on_loop(lambda: self._loop.release(self.question, [self._branch(key).key]))

    def end(self) -> None:
        """Free everything and wait until it is freed; a second call has no effect."""
        self._loop.stop(self.question, CancelledError("the session was released"))
        self.question.handle.wait()

    def token_ids(self, key: int) -> tuple[int, ...]:
        return self.on_loop(lambda: tuple(self._branch(key).token_ids))

    def _branch(self, key: int) -> LiveBranch:
        branch = self.question.branches.get(key)
        if branch is None:
            raise InvalidInputError("this branch has been released or committed; fork a new one")
        if self.question.is_in_flight:
            raise InvalidInputError("this session is busy; wait for its other call to return")
        return branch


class BranchRef:
    """A live branch of a session: fork it, decode it with `Engine.decode`, commit or release it."""

    def __init__(self, session: Session, key: int) -> None:
        self.session = session
        self.key = key
        self.last: Branch | None = None

    @property
    def text(self) -> str:
        """What the last `decode` added."""
        return self.last.text if self.last else ""

    @property
    def inner(self) -> str:
        """The last `decode`'s text without the stage's tags."""
        return self.last.inner if self.last else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.last.finish_reason if self.last else None

    @property
    def cumulative_logprob(self) -> float:
        return self.last.cumulative_logprob if self.last else 0.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Everything from the prompt's first token."""
        return self.session.token_ids(self.key)

    @property
    def usage(self) -> Usage:
        """The session's counts so far."""
        return self.session.question.usage

    def fork(self, n: int) -> list[BranchRef]:
        """`n` branches that go on from here; they share every cached block."""
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise InvalidInputError(f"fork needs a number of branches >= 1, got {n!r}")
        return self.session.new_branches(self.key, n)

    def snapshot(self) -> BranchRef:
        """A reference to this state that `commit` keeps, to `rollback` to."""
        (ref,) = self.session.new_branches(self.key, 1)
        self.session.snapshots.add(ref.key)
        return ref

    def commit(self) -> None:
        """Make this branch the trunk: the root goes on from here, all but snapshots are freed."""
        self.session.commit(self)

    def rollback(self, to: BranchRef) -> None:
        """Go back to where `to` stands; `to` stays usable."""
        self.session.move(to.key, self.key)
        self.last = to.last

    def release(self) -> None:
        """Free this branch; the root frees the whole session."""
        if self.key == TRUNK_KEY:
            self.session.end()
        else:
            self.session.snapshots.discard(self.key)
            self.session.drop(self.key)

    def __enter__(self) -> BranchRef:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
