"""The engine for asyncio: await answers, iterate events, cancel by cancelling the task.

Wraps an `Engine`, whose thread does the work; owns only worker threads that read images and tokenise,
so that the event loop never waits. Invariant: a question whose awaiting task was cancelled ends, even
if it had not reached the engine yet.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from stagebeam.engine.arguments import check_seconds
from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import DeadlineError
from stagebeam.engine.events import Done, Event, Failed, Listener
from stagebeam.engine.handle import Handle
from stagebeam.engine.messages import QuestionText
from stagebeam.engine.models.images import ImageSource
from stagebeam.engine.outputs import Answer
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.question import Scorer
from stagebeam.engine.stages import StagePlan

GATHER_SECONDS = 0.03


class AsyncEngine:
    """An engine to await; usable from several event loops and threads at once.

    engine:      loaded already (loading takes a while: do it before the event loop runs)
    num_workers: threads that read images and tokenise
    `async with` (or `close`) ends what runs and closes the engine.
    """

    def __init__(self, engine: Engine, *, num_workers: int = 4) -> None:
        self.engine = engine
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="stagebeam-intake")

    async def answer(
        self,
        question: QuestionText,
        image: ImageSource | None = None,
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
        deadline_seconds: float | None = None,
    ) -> Answer:
        """Answer one question; see `Engine.submit` for the arguments and errors."""
        handle = await self.submit(
            question,
            image,
            search=search,
            sampling=sampling,
            judge=judge,
            plan=plan,
            scorer=scorer,
            has_events=False,
            deadline_seconds=deadline_seconds,
        )
        return await handle.result()

    async def submit(
        self,
        question: QuestionText,
        image: ImageSource | None = None,
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
        has_events: bool = True,
        deadline_seconds: float | None = None,
    ) -> AsyncHandle:
        """Start a question and return once the engine has taken it; see `Engine.submit`.

        deadline_seconds: counts from this call, the reading of the image included
        """
        check_seconds("deadline_seconds", deadline_seconds)
        began = time.perf_counter()
        handle = AsyncHandle(asyncio.get_running_loop(), has_events=has_events)

        def start() -> Handle:
            left = deadline_seconds
            if left is not None:
                left -= time.perf_counter() - began
                if left <= 0:
                    raise DeadlineError(f"no answer within {deadline_seconds:g} seconds")
            return self.engine.submit(
                question,
                image,
                search=search,
                sampling=sampling,
                judge=judge,
                plan=plan,
                scorer=scorer,
                has_events=False,
                on_event=handle.listener,
                deadline_seconds=left,
            )

        starting = self._workers.submit(start)
        try:
            handle.attach(await asyncio.wrap_future(starting))
        except asyncio.CancelledError:
            starting.add_done_callback(_cancel_started)  # it may be past cancelling
            raise
        return handle

    async def close(self) -> None:
        """Cancel what runs and close the engine."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self.engine.close()
        self._workers.shutdown(cancel_futures=True)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncHandle:
    """A submitted question, of one event loop. Leaving `async with` cancels it if it still runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, has_events: bool) -> None:
        self._loop = loop
        self._mailbox = _Mailbox(loop) if has_events else None
        self._handle: Handle | None = None
        self._ended = asyncio.Event()

    @property
    def listener(self) -> Listener | None:
        return self._mailbox.put if self._mailbox is not None else None

    def attach(self, handle: Handle) -> None:
        """Follow the question that the engine has taken."""
        self._handle = handle
        handle.add_done_callback(partial(_call_soon, self._loop, self._ended.set))

    async def result(self) -> Answer:
        """Wait for the answer, or raise what ended the question; cancelling the wait cancels it."""
        assert self._handle is not None
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._handle.result()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, as it happens, up to `Done` or `Failed`; for one consumer.

        An event may wait GATHER_SECONDS for those after it. Cancelling the wait cancels the question.
        """
        assert self._mailbox is not None, "this question was submitted without events"
        while True:
            try:
                batch = await self._mailbox.take()
            except asyncio.CancelledError:
                self.cancel()
                raise
            for event in batch:
                yield event
                if isinstance(event, (Done, Failed)):
                    return

    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        """Stop the question and free what it holds; no effect once it is done."""
        if self._handle is not None:
            self._handle.cancel()

    async def __aenter__(self) -> AsyncHandle:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()


class _Mailbox:
    """Events from the engine's thread to an event loop, which is woken once for many of them.

    Waking it for every token slows a native step on the same processors by far more than the waking
    itself takes, so an event that comes soon after others waits for up to GATHER_SECONDS; the first
    after a pause and the last do not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._has_events = asyncio.Event()
        self._is_gathering = False  # a look at the events is due: `put` need not wake
        self._look: asyncio.TimerHandle | None = None

    def put(self, event: Event) -> None:
        """The engine's side; on a closed event loop it raises, which ends the question."""
        self._events.append(event)
        if not self._is_gathering or isinstance(event, (Done, Failed)) or self._loop.is_closed():
            self._is_gathering = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._has_events.set()
        if self._look is None:
            self._look = self._loop.call_later(GATHER_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._is_gathering = False  # before the events are looked at: a later `put` wakes
        if self._events:
            self._is_gathering = True
            self._wake()

    async def take(self) -> list[Event]:
        """All that has come; waits for something."""
        await self._has_events.wait()
        self._has_events.clear()
        return [self._events.popleft() for _ in range(len(self._events))]


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    with suppress(RuntimeError):  # the event loop is closed: nobody waits
        loop.call_soon_threadsafe(call)


def _cancel_started(starting: Future[Handle]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().cancel()
