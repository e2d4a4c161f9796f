"""The caller's end of a running question: its result, its events, and a way to cancel it.

Thread-safe. Invariant: a question ends exactly once, with a result or an error, and its event
stream always ends. A listener runs on the engine's thread but cannot break it: what it raises, or a
call that takes too long, ends its own question.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from stagebeam.engine.errors import CancelledError, ListenerError
from stagebeam.engine.events import Done, Event, Failed, Listener, failed

MAX_LISTENER_SECONDS = 5.0  # of one call; a listener should take microseconds

logger = logging.getLogger(__name__)


class Handle:
    """A submitted question.

    stop:     ends the question with an error, from any thread
    on_event: told of each event on the engine's thread, in place of the queue of `events()`
    """

    def __init__(
        self,
        stop: Callable[[BaseException], None],
        has_events: bool,
        on_event: Listener | None = None,
    ) -> None:
        self._future: Future[Any] = Future()
        self._events: queue.SimpleQueue[Event] | None = None
        if has_events and on_event is None:
            self._events = queue.SimpleQueue()
        self._listener = self._events.put if self._events is not None else on_event
        self._stop = stop

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the answer (an `Answer`).

        Errors: TimeoutError after `timeout` seconds (the question goes on), CancelledError when it
        was cancelled or the engine closed, else the question's own error.
        """
        try:
            return self._future.result(timeout)
        except FutureTimeoutError:  # Python 3.10's is not the built-in one
            if self._future.done():
                raise
            raise TimeoutError(f"no answer after {timeout} seconds; the question goes on") from None

    def done(self) -> bool:
        return self._future.done()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, whatever it is; False after `timeout` seconds without one."""
        return not wait([self._future], timeout).not_done

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the question has ended, on the thread that ends it (or at once)."""
        self._future.add_done_callback(lambda _: callback())

    def cancel(self) -> None:
        """Stop the question and free what it holds; no effect once it is done."""
        if not self._future.done():
            self._stop(CancelledError("the question was cancelled"))

    def events(self) -> Iterator[Event]:
        """What happens, as it happens, up to and including `Done` or `Failed`; for one consumer."""
        assert self._events is not None, (
            "this question was submitted without events, or with a listener"
        )
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, (Done, Failed)):
                return

    @property
    def has_listener(self) -> bool:
        """Whether anybody hears of events."""
        return self._listener is not None

    def emit(self, event: Event) -> None:
        """The loop's side: tell the listener; one that fails is not called again."""
        if self._listener is None:
            return
        began = time.perf_counter()
        cause: BaseException | None = None
        problem = ""
        try:
            self._listener(event)
        except BaseException as error:  # the caller's code, and the thread must outlive it
            cause, problem = error, f"raised {type(error).__name__}: {error}"
        seconds = time.perf_counter() - began
        if cause is None and seconds > MAX_LISTENER_SECONDS:
            problem = f"took {seconds:.1f} s, expected at most {MAX_LISTENER_SECONDS:g} s"
        if not problem:
            return
        self._listener = None
        logger.warning("a listener %s at %s; it hears no more", problem, event.type, exc_info=cause)
        if not self._future.done():
            failure = ListenerError(f"the question's event listener {problem}")
            failure.__cause__ = cause
            self._stop(failure)

    def finish(self, result: Any, event: Event) -> None:
        """The loop's side: end with a result."""
        self._future.set_result(result)
        self._end(event)

    def fail(self, error: BaseException) -> None:
        """The loop's side: end with an error."""
        self._future.set_exception(error)
        self._end(failed(error))

    def _end(self, event: Event) -> None:
        """Tell of the end, then let go of the question: it holds this handle, and a circle with its
        image and answer would wait for a full garbage collection, which comes ever more rarely."""
        self._stop = _nothing
        self.emit(event)
        self._listener = None


def _nothing(_: BaseException) -> None:
    """What stopping a question that has ended does."""
