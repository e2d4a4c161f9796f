"""The engine under asyncio: answers, events, cancellation, deadlines, many questions at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from probe import choices, held

from stagebeam import AsyncEngine, SearchParams
from stagebeam.engine.async_engine import _Mailbox
from stagebeam.engine.errors import CancelledError, DeadlineError, ImageError, InvalidInputError
from stagebeam.engine.events import Done, Failed, StageStarted

BEAM = SearchParams(beam_size=3)


@pytest.fixture
def run(engine) -> Callable[[Callable[[AsyncEngine], Any]], Any]:
    """Run a coroutine function on an async engine, closed afterwards; nothing may be held then."""

    def run(main: Callable[[AsyncEngine], Any]) -> Any:
        async def whole() -> Any:
            async with AsyncEngine(engine) as asked:
                return await main(asked)

        return asyncio.run(asyncio.wait_for(whole(), 120))

    return run


def test_an_answer_equals_the_engines(run, engine, image, free_sampling) -> None:
    sampling = free_sampling(20, seed=3)
    expected = engine.answer("how many?", image, search=BEAM, sampling=sampling)

    async def main(asked: AsyncEngine) -> None:
        answer = await asked.answer("how many?", image, search=BEAM, sampling=sampling)
        assert choices(answer) == choices(expected)

    run(main)


def test_events_equal_the_engines(run, engine, image, free_sampling) -> None:
    sampling = free_sampling(30, seed=4)
    handle = engine.submit("how many?", image, search=BEAM, sampling=sampling)
    expected = list(handle.events())

    async def main(asked: AsyncEngine) -> None:
        async with await asked.submit("how many?", image, search=BEAM, sampling=sampling) as handle:
            events = [event async for event in handle.events()]
            assert events[:-1] == expected[:-1]
            assert isinstance(events[-1], Done)
            assert events[-1].answer is await handle.result()
            assert handle.done()

    run(main)


def test_many_questions_in_flight(run, engine, image, wide_image, free_sampling) -> None:
    def arguments(i: int) -> dict[str, Any]:
        picture = (image, wide_image, None)[i % 3]
        return {
            "question": f"{i}?",
            "image": picture,
            "search": BEAM,
            "sampling": free_sampling(10, seed=i),
        }

    async def main(asked: AsyncEngine) -> list[Any]:
        return await asyncio.gather(*(asked.answer(**arguments(i)) for i in range(40)))

    alone = {i: choices(engine.answer(**arguments(i))) for i in (0, 7, 20)}
    answers = run(main)
    assert [answer.question for answer in answers] == [f"{i}?" for i in range(40)]
    assert {i: choices(answers[i]) for i in alone} == alone


def test_cancelling_the_task_cancels_the_question(run, engine, image, free_sampling) -> None:
    endless = free_sampling(100, ignore_eos=True)

    async def main(asked: AsyncEngine) -> None:
        handle = await asked.submit("how many?", image, search=BEAM, sampling=endless)
        started = asyncio.Event()

        async def follow() -> None:
            async for _ in handle.events():
                started.set()

        following = asyncio.create_task(follow())
        await started.wait()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        with pytest.raises(CancelledError, match="the question was cancelled"):
            await handle.result()

        asking = asyncio.create_task(asked.answer("b?", image, sampling=endless))
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked.answer("c?", image, sampling=endless), 0.02)
        await until_idle(asked)

    run(main)


async def until_idle(asked: AsyncEngine) -> None:
    while asked.engine.stats()["num_sequences"]:
        await asyncio.sleep(0.005)


def test_cancelling_before_the_engine_has_it(
    run, engine, image, free_sampling, monkeypatch
) -> None:
    """The worker is past cancelling when the task is cancelled: the question ends all the same."""
    submit, handles, may_go_on = engine.submit, [], threading.Event()

    def slow_submit(*args: Any, **options: Any) -> Any:
        may_go_on.wait(30)
        handles.append(submit(*args, **options))
        return handles[-1]

    monkeypatch.setattr(engine, "submit", slow_submit)

    async def main(asked: AsyncEngine) -> None:
        asking = asyncio.create_task(
            asked.answer("a?", image, sampling=free_sampling(100, ignore_eos=True))
        )
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        may_go_on.set()
        while not handles:
            await asyncio.sleep(0.005)
        with pytest.raises(CancelledError):
            await asyncio.to_thread(handles[0].result, 30)

    run(main)


def test_leaving_the_block_cancels(run, engine, image, free_sampling) -> None:
    async def main(asked: AsyncEngine) -> None:
        sampling = free_sampling(2000, ignore_eos=True)
        async with await asked.submit("a?", image, search=BEAM, sampling=sampling) as handle:
            async for event in handle.events():
                assert not isinstance(event, Failed)
                break
        with pytest.raises(CancelledError):
            await handle.result()

    run(main)


def test_a_deadline(run, engine, image, free_sampling) -> None:
    async def main(asked: AsyncEngine) -> None:
        sampling = free_sampling(100, ignore_eos=True)
        wide = SearchParams(beam_size=16)
        handle = await asked.submit(
            "a?", image, search=wide, sampling=sampling, deadline_seconds=0.03
        )
        events = [event async for event in handle.events()]
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "deadline"
        with pytest.raises(DeadlineError):
            await handle.result()
        with pytest.raises(InvalidInputError):
            await asked.answer("a?", deadline_seconds=-1)

    run(main)


def test_a_deadline_counts_the_wait_for_a_worker(engine, image, free_sampling) -> None:
    async def main() -> None:
        async with AsyncEngine(engine, num_workers=1) as asked:
            asked._workers.submit(time.sleep, 0.1)
            with pytest.raises(DeadlineError):
                await asked.answer("a?", image, deadline_seconds=0.01)

    asyncio.run(main())


def test_faults_reach_the_caller(run, engine, image, free_sampling) -> None:
    async def main(asked: AsyncEngine) -> None:
        with pytest.raises(ImageError):
            await asked.answer("a?", b"no image")
        with pytest.raises(InvalidInputError):
            await asked.answer("")
        assert (await asked.answer("b?", image, sampling=free_sampling(4))).stages

    run(main)


def test_event_loops_of_several_threads(engine, image, free_sampling) -> None:
    asked = AsyncEngine(engine)
    answers: dict[int, Any] = {}

    def ask(i: int) -> None:
        async def main() -> None:
            handle = await asked.submit(f"{i}?", image, sampling=free_sampling(8, seed=i))
            events = [event async for event in handle.events()]
            assert isinstance(events[-1], Done)
            answers[i] = await handle.result()

        asyncio.run(main())

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i].question for i in range(6)] == [f"{i}?" for i in range(6)]
    asyncio.run(asked.close())


def test_an_event_loop_that_is_gone_ends_its_question(engine, image, free_sampling) -> None:
    asked = AsyncEngine(engine)
    kept = []

    async def main() -> None:
        kept.append(await asked.submit("a?", image, sampling=free_sampling(60)))

    with held(engine):
        asyncio.run(main())
    handle = kept[0]._handle
    assert handle.wait(60)
    assert engine.answer("b?", image, sampling=free_sampling(4)).stages
    asyncio.run(asked.close())


def test_closing_ends_what_runs(engine, image, free_sampling) -> None:
    async def main() -> None:
        asked = AsyncEngine(engine)
        handles = [
            await asked.submit(f"{i}?", image, sampling=free_sampling(100, ignore_eos=True))
            for i in range(3)
        ]
        await asked.close()
        for handle in handles:
            with pytest.raises(CancelledError):
                await handle.result()

    asyncio.run(main())


def test_events_close_together_wake_the_loop_once() -> None:
    started = StageStarted(stage="a", num_candidates=1)

    async def deliver() -> tuple[tuple[int, int], ...]:
        loop, wakes = asyncio.get_running_loop(), []
        patient = SimpleNamespace(
            call_soon_threadsafe=lambda call: wakes.append(loop.call_soon(call)),
            call_later=lambda _, call: looks.append(call) or len(looks),
            is_closed=lambda: False,
        )
        looks: list[Callable[[], None]] = []
        mailbox = _Mailbox(patient)
        for _ in range(100):
            mailbox.put(started)
        num_first = len(wakes), len(await mailbox.take())
        mailbox.put(started)  # waits for the look that is due
        looks.pop()()
        num_gathered = len(wakes), len(await mailbox.take())
        looks.pop()()  # nothing came
        mailbox.put(started)
        num_after_a_pause = len(wakes), len(await mailbox.take())
        mailbox.put(Failed(error="x"))
        num_last = len(wakes), len(await mailbox.take())
        return num_first, num_gathered, num_after_a_pause, num_last

    assert asyncio.run(deliver()) == ((1, 100), (1, 1), (2, 1), (3, 1))
