"""Handles and events: what a caller hears, in which order, and from any thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from probe import choices, held

from stagebeam.engine.errors import CancelledError, InvalidInputError
from stagebeam.engine.events import (
    CandidateFinished,
    Done,
    Failed,
    MatchJudged,
    StageCommitted,
    StageStarted,
    TokenText,
    event_to_dict,
)
from stagebeam.engine.params import SearchParams

BEAM = SearchParams(beam_size=3)


def test_events_tell_an_answer_in_order(engine, image, free_sampling) -> None:
    handle = engine.submit("how many?", image, search=BEAM, sampling=free_sampling(40, seed=2))
    events = list(handle.events())
    answer = handle.result()
    assert isinstance(events[-1], Done)
    assert events[-1].answer is answer
    rest = iter(events)
    for stage in answer.stages:
        assert next(rest) == StageStarted(stage=stage.name, num_candidates=3)
        texts, ended = ["", "", ""], {}
        while len(ended) < 3:
            event = next(rest)
            assert isinstance(event, (TokenText, CandidateFinished))
            assert event.stage == stage.name
            assert event.candidate not in ended
            if isinstance(event, TokenText):
                texts[event.candidate] += event.text
            else:
                ended[event.candidate] = event.finish_reason
        assert texts == [candidate.text for candidate in stage.candidates]
        assert [ended[i] for i in range(3)] == [c.finish_reason for c in stage.candidates]
        for match in stage.matches:
            assert next(rest) == MatchJudged(stage=stage.name, match=match)
        assert next(rest) == StageCommitted(stage=stage.name, winner=stage.winner, text=stage.text)
    assert next(rest) is events[-1]
    assert all(event_to_dict(event)["type"] for event in events)


def test_pieces_never_split_a_character(engine, free_sampling) -> None:
    """Characters of several tokens come whole, with the token that completes them."""
    texts: dict[int, str] = {}
    handle = engine.submit(
        "how many?",
        search=SearchParams(strategy="best_of_n", beam_size=12),
        sampling=free_sampling(60, seed=3),
    )
    for event in handle.events():
        if isinstance(event, TokenText):
            assert event.text
            texts[event.candidate] = texts.get(event.candidate, "") + event.text
    candidates = handle.result().stages[0].candidates
    assert texts == {i: candidate.text for i, candidate in enumerate(candidates)}
    pieces = engine._loop._decoder._token_bytes
    raw = [b"".join(pieces[t] or b"" for t in c.token_ids) for c in candidates]
    assert [r.decode(errors="replace") for r in raw] == [c.text for c in candidates]
    characters = {char for char in "".join(texts.values()) if ord(char) > 127}
    assert len(characters & {"é", "π", "ж", "🙂"}) >= 2


def test_a_timeout_leaves_the_question_running(engine, image, free_sampling) -> None:
    with held(engine):
        handle = engine.submit("how many?", image, search=BEAM, sampling=free_sampling(8))
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.01)
        assert not handle.done()
        assert not handle.wait(0)
    assert handle.result(30).stages
    assert handle.done()
    handle.cancel()  # no effect once it is done
    assert handle.result() is handle.result()


def test_cancel_in_the_middle(engine, image, free_sampling) -> None:
    handle = engine.submit("how many?", image, sampling=free_sampling(60, ignore_eos=True))
    heard = []
    for event in handle.events():
        heard.append(event)
        if isinstance(event, TokenText):
            handle.cancel()
    assert isinstance(heard[-1], Failed)
    assert heard[-1].error == "CancelledError: the question was cancelled"
    assert not any(isinstance(event, Done) for event in heard)
    with pytest.raises(CancelledError, match="cancelled"):
        handle.result()


def test_cancel_before_it_starts(engine, image, free_sampling) -> None:
    with held(engine):
        handle = engine.submit("how many?", image, sampling=free_sampling(8))
        handle.cancel()
    assert [type(event) for event in handle.events()] == [Failed]
    assert engine.answer("and now?", image, sampling=free_sampling(8)).stages


def test_an_error_ends_the_events(engine, image, free_sampling) -> None:
    handle = engine.submit(
        "how many?",
        image,
        search=SearchParams(strategy="swires"),
        sampling=free_sampling(60, seed=4),
        scorer=lambda question, texts: [],
    )
    events = list(handle.events())
    assert isinstance(events[-1], Failed)
    assert "InvalidInputError: the scorer must give" in events[-1].error


def test_closing_ends_the_events(make_engine, image, free_sampling) -> None:
    engine = make_engine()
    handles = [engine.submit(f"{i}?", image, sampling=free_sampling(60)) for i in range(3)]
    engine.close()
    for handle in handles:
        assert isinstance(list(handle.events())[-1], (Failed, Done))
    engine.close()


def test_threads_submit_at_once(engine, image, wide_image, free_sampling) -> None:
    def ask(i: int):
        sampling = free_sampling(16, seed=i)
        if i % 4 == 3:
            with engine.open(f"{i}?", image, sampling=sampling) as root:
                engine.decode(root.fork(2))
                return None
        picture = (image, wide_image, None)[i % 3]
        return engine.answer(f"{i}?", picture, search=BEAM, sampling=sampling)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(16)))
    for i in (0, 5, 10):
        assert choices(answers[i]) == choices(ask(i))


def test_a_session_takes_one_call_at_a_time(engine, image, free_sampling) -> None:
    with engine.open("how many?", image) as root:
        kids = root.fork(2)
        failures = []

        def decode(kid) -> None:
            try:
                engine.decode([kid], sampling=free_sampling(30, ignore_eos=True))
            except InvalidInputError as error:
                failures.append(str(error))

        threads = [threading.Thread(target=decode, args=(kid,)) for kid in kids]
        with held(engine):
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join(30)
        assert all("busy" in failure for failure in failures)
        assert len(failures) <= 1


def test_iterating_answers_may_stop_early(engine, image, free_sampling) -> None:
    questions = [(f"{i}?", image) for i in range(6)]
    answers = engine.iter_answers(questions, search=BEAM, sampling=free_sampling(30))
    first = next(answers)
    assert first.question == "0?"
    answers.close()  # the rest is cancelled; the fixture asserts that nothing is held
