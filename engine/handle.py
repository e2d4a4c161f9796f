"""The caller's end of a running question: its result, its events, and a way to cancel it.

Thread-safe. Invariant: a question ends exactly once, with a result or an error, and its event
stream always ends.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from stagebeam.engine.events import Done, Event, Failed


class Handle:
    """A submitted question."""

    def __init__(self, cancel: Callable[[], None], has_events: bool) -> None:
        self._future: Future[Any] = Future()
        self._events: queue.SimpleQueue[Event] | None = queue.SimpleQueue() if has_events else None
        self._cancel = cancel

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

    def cancel(self) -> None:
        """Stop the question and free what it holds; no effect once it is done."""
        if not self._future.done():
            self._cancel()

    def events(self) -> Iterator[Event]:
        """What happens, as it happens, up to and including `Done` or `Failed`; for one consumer."""
        assert self._events is not None, "this question was submitted without events"
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, (Done, Failed)):
                return

    @property
    def has_events(self) -> bool:
        return self._events is not None

    def emit(self, event: Event) -> None:
        """The loop's side: tell the listener."""
        if self._events is not None:
            self._events.put(event)

    def finish(self, result: Any, event: Event) -> None:
        """The loop's side: end with a result."""
        self._future.set_result(result)
        self.emit(event)

    def fail(self, error: BaseException) -> None:
        """The loop's side: end with an error."""
        self._future.set_exception(error)
        self.emit(Failed(error=f"{type(error).__name__}: {error}"))
