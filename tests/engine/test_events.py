"""The event schema's JSON form, listeners on the engine's thread, and deadlines."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest
from probe import held

from stagebeam.engine import handle as handle_module
from stagebeam.engine.errors import (
    CancelledError,
    CapacityError,
    DeadlineError,
    InvalidInputError,
    ListenerError,
)
from stagebeam.engine.events import (
    CandidateFinished,
    Done,
    Failed,
    StageStarted,
    TokenText,
    event_to_dict,
    failed,
)
from stagebeam.engine.params import JudgeParams, SearchParams

BEAM = SearchParams(beam_size=3)
KEYS = {  # the stable form: a key may be added here, none renamed or removed
    "stage_started": ["stage", "round", "first_candidate", "num_candidates"],
    "token_text": ["stage", "round", "candidate", "text", "token_ids", "logprobs"],
    "candidate_finished": ["stage", "round", "candidate", "finish_reason"],
    "match_judged": ["stage", "match"],
    "stage_committed": ["stage", "winner", "text"],
    "done": ["answer"],
    "failed": ["error", "code"],
}
MATCH_KEYS = [
    *("first", "second", "winner", "probability", "kind", "is_disagreement"),
    *("is_malformed_verdict", "is_tie", "verdict_text"),
]


def test_the_json_form_is_stable(engine, image, free_sampling) -> None:
    handle = engine.submit("how many?", image, search=BEAM, sampling=free_sampling(40, seed=2))
    events = list(handle.events())
    found = {}
    for data in map(event_to_dict, [*events, Failed(error="x")]):
        assert json.loads(json.dumps(data, allow_nan=False)) is not None
        found[data["type"]] = data
        assert list(data) == ["type", *KEYS[data["type"]]]
    assert set(found) == set(KEYS)
    assert list(found["match_judged"]["match"]) == MATCH_KEYS
    assert found["done"]["answer"] == handle.result().to_dict()


def test_pieces_carry_their_tokens(engine, image, free_sampling) -> None:
    handle = engine.submit("how many?", image, search=BEAM, sampling=free_sampling(60, seed=3))
    tokens: dict = {}
    logprobs: dict = {}
    for event in handle.events():
        if isinstance(event, TokenText):
            assert len(event.token_ids) == len(event.logprobs) > 0
            key = (event.stage, event.candidate)
            tokens.setdefault(key, []).extend(event.token_ids)
            logprobs[key] = logprobs.get(key, 0.0) + sum(event.logprobs)
    pieces = engine._loop._decoder._token_bytes
    num_whole = 0
    for stage in handle.result().stages:
        for i, candidate in enumerate(stage.candidates):
            told = tuple(tokens.get((stage.name, i), ()))
            assert told == candidate.token_ids[: len(told)]
            assert not any(pieces[token] for token in candidate.token_ids[len(told) :])
            if told == candidate.token_ids:
                num_whole += 1
                total = logprobs.get((stage.name, i), 0.0)
                assert total == pytest.approx(candidate.cumulative_logprob, abs=1e-3)
    assert num_whole


def test_rounds_tell_retraced_candidates_apart(engine, image, free_sampling) -> None:
    handle = engine.submit(
        "how many?",
        image,
        search=SearchParams(strategy="sentence_beam", beam_size=2, max_rounds=3),
        sampling=free_sampling(6, seed=4),
    )
    starts = [event for event in handle.events() if isinstance(event, StageStarted)]
    assert [start.round for start in starts] == list(range(len(starts)))
    assert [start.stage for start in starts] == [f"sentence {i + 1}" for i in range(len(starts))]


def test_a_listener_hears_what_the_queue_holds(engine, image, free_sampling) -> None:
    sampling = free_sampling(30, seed=6)
    queued = list(engine.submit("how many?", image, search=BEAM, sampling=sampling).events())
    heard, threads = [], set()

    def listener(event) -> None:
        heard.append(event)
        threads.add(threading.current_thread())

    handle = engine.submit("how many?", image, search=BEAM, sampling=sampling, on_event=listener)
    answer = handle.result(60)
    assert heard[:-1] == queued[:-1]
    assert isinstance(heard[-1], Done)
    assert heard[-1].answer is answer
    assert threads == {engine._loop._thread}
    with pytest.raises(AssertionError, match="listener"):
        next(handle.events())


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_a_listener_that_raises_ends_its_question_only(
    engine, image, free_sampling, error, caplog
) -> None:
    calls = []

    def broken(event) -> None:
        calls.append(event)
        if isinstance(event, TokenText):
            raise error("my fault")

    with held(engine):
        bad = engine.submit("a?", image, sampling=free_sampling(60), on_event=broken)
        good = engine.submit("b?", image, search=BEAM, sampling=free_sampling(8, seed=1))
    with caplog.at_level(logging.WARNING), pytest.raises(ListenerError, match="my fault") as caught:
        bad.result(60)
    assert isinstance(caught.value.__cause__, error)
    assert isinstance(calls[-1], TokenText)  # not called again
    assert good.result(60).stages
    assert engine.answer("c?", image, sampling=free_sampling(8)).stages


def test_a_listener_that_raises_at_the_end_is_reported(
    engine, image, free_sampling, caplog
) -> None:
    def broken(event) -> None:
        if isinstance(event, Done):
            raise RuntimeError("too late")

    handle = engine.submit("a?", image, sampling=free_sampling(8), on_event=broken)
    assert handle.result(60).stages
    engine.answer("b?", image, sampling=free_sampling(8))
    assert "too late" in caplog.text


def test_a_listener_that_stalls_is_ended(engine, image, free_sampling, monkeypatch) -> None:
    monkeypatch.setattr(handle_module, "MAX_LISTENER_SECONDS", 0.01)
    handle = engine.submit(
        "a?", image, sampling=free_sampling(60), on_event=lambda event: time.sleep(0.05)
    )
    with pytest.raises(ListenerError, match=r"took .* s, expected at most 0\.01 s"):
        handle.result(60)


def test_a_listener_may_cancel_its_question(engine, image, free_sampling) -> None:
    heard, handles = [], []

    def listener(event) -> None:
        heard.append(event)
        if isinstance(event, CandidateFinished):
            handles[0].cancel()

    with held(engine):
        handles.append(
            engine.submit(
                "a?", image, search=BEAM, sampling=free_sampling(60, seed=1), on_event=listener
            )
        )
    with pytest.raises(CancelledError):
        handles[0].result(60)
    assert heard[-1] == Failed(error="CancelledError: the question was cancelled", code="cancelled")


def test_a_deadline_ends_a_running_question(engine, image, free_sampling) -> None:
    handle = engine.submit(
        "a?", image, sampling=free_sampling(100, ignore_eos=True), deadline_seconds=0.02
    )
    with pytest.raises(DeadlineError, match=r"no answer within 0\.02 seconds"):
        handle.result(60)
    last = list(handle.events())[-1]
    assert isinstance(last, Failed)
    assert last.code == "deadline"


def test_a_deadline_ends_a_waiting_question(make_engine, image, wide_image, free_sampling) -> None:
    """A session holds the only image slot, and nothing runs: the loop wakes for the deadline."""
    engine = make_engine(num_image_slots=1)
    with engine.open("a?", image):
        handle = engine.submit("b?", wide_image, sampling=free_sampling(4), deadline_seconds=0.05)
        with pytest.raises(DeadlineError):
            handle.result(60)
    assert engine.answer("b?", wide_image, sampling=free_sampling(4)).stages


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", True])
def test_deadlines_that_are_none(engine, seconds) -> None:
    with pytest.raises(InvalidInputError, match="deadline_seconds"):
        engine.submit("a?", deadline_seconds=seconds)
    with pytest.raises(InvalidInputError, match="on_event"):
        engine.submit("a?", on_event=3)


def test_failure_codes() -> None:
    errors = {
        "cancelled": CancelledError("x"),
        "deadline": DeadlineError("x"),
        "capacity": CapacityError("x"),
        "invalid": InvalidInputError("x"),
        "listener": ListenerError("x"),
        "internal": RuntimeError("x"),
    }
    assert {code: failed(error).code for code, error in errors.items()} == {c: c for c in errors}


def test_gates_and_generated_verdicts_are_told_as_matches(engine, image, free_sampling) -> None:
    handle = engine.submit(
        "how many?",
        image,
        search=BEAM,
        sampling=free_sampling(20, seed=9),
        judge=JudgeParams(mode="generate"),
    )
    matches = [d for d in map(event_to_dict, handle.events()) if d["type"] == "match_judged"]
    played = [match for stage in handle.result().stages for match in stage.matches]
    assert len(matches) == len(played)
