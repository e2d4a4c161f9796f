"""A question that has ended is freed by its reference counts: it waits for no garbage collection.

In a process that has loaded PyTorch a full collection is rare, and what waits for it (pixels,
answers) looks like a leak to whoever watches the process.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.errors import CancelledError, DeadlineError
from stagebeam.engine.params import SearchParams
from stagebeam.engine.question import Question

BEAM = SearchParams(beam_size=3)


@pytest.fixture
def collected() -> Iterator[Callable[[], int]]:
    """No garbage collection; call it for how many questions are left once the engine's thread is idle."""
    gc.collect()
    gc.disable()

    def num_left() -> int:
        for _ in range(200):
            left = sum(1 for thing in gc.get_objects() if type(thing) is Question)
            if not left:
                break
            time.sleep(0.01)
        return left

    yield num_left
    gc.enable()


def test_an_answered_question(collected, engine, image, free_sampling) -> None:
    handle = engine.submit("how many?", image, search=BEAM, sampling=free_sampling(40, seed=2))
    assert list(handle.events())[-1].answer is handle.result()
    assert collected() == 0  # while its handle is held


def test_a_question_that_ends_early(collected, engine, image, free_sampling) -> None:
    sampling = free_sampling(2000, seed=2)

    cancelled = engine.submit("how many?", image, search=BEAM, sampling=sampling)
    cancelled.cancel()
    with suppress(CancelledError):
        cancelled.result()
    late = engine.submit("how many?", image, sampling=sampling, deadline_seconds=1e-6)
    with suppress(DeadlineError):
        late.result()
    assert cancelled.done()
    assert late.done()
    assert collected() == 0


def test_the_other_ways_in(collected, engine, image, free_sampling) -> None:
    engine.generate(["how many?"], free_sampling(5))
    engine.judge("how many?", image, [("<a>", "<b>")], engine.plan.prompts.answer_criterion)
    root = engine.open("how many?", image)
    engine.decode(root.fork(2), sampling=free_sampling(5))
    root.release()
    del root
    assert collected() == 0


def test_asyncio(collected, engine, image, free_sampling) -> None:
    async def ask() -> None:
        front = AsyncEngine(engine)
        sampling = free_sampling(40, seed=2)
        async with await front.submit("how many?", image, sampling=sampling) as handle:
            async for _ in handle.events():
                pass
        await front.answer("how many?", image, sampling=sampling)

    asyncio.run(ask())
    assert collected() == 0


def test_cancel_after_the_end(engine, image, free_sampling) -> None:
    handle = engine.submit("how many?", image, sampling=free_sampling(5, seed=2))
    answer = handle.result()
    handle.cancel()
    assert handle.result() is answer
