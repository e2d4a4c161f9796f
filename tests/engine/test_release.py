"""A question that ends, however it ends, holds nothing: no block, row, reservation or image slot.

The probe asserts between any two turns that every held block belongs to a running question.
"""

from __future__ import annotations

import threading
import time

import pytest
from probe import Probe, assert_nothing_held

from stagebeam.engine.errors import CancelledError, CapacityError, InvalidInputError
from stagebeam.engine.events import CandidateFinished, TokenText
from stagebeam.engine.params import JudgeParams, SearchParams, SwiresParams

BEAM = SearchParams(beam_size=3)


@pytest.fixture
def watched(make_engine) -> Probe:
    return Probe(make_engine(), keeps_rows=False)


@pytest.mark.parametrize(
    "strategy", ["greedy", "single", "best_of_n", "sentence_beam", "stage_beam"]
)
@pytest.mark.parametrize("mode", ["logits", "generate"])
def test_after_an_answer(watched, image, free_sampling, strategy, mode) -> None:
    watched.engine.answer(
        "how many?",
        image,
        search=SearchParams(strategy=strategy, beam_size=3),
        sampling=free_sampling(seed=4),
        judge=JudgeParams(mode=mode, sampling=free_sampling(max_tokens=5)),
    )
    assert_nothing_held(watched.engine)


def test_after_swires(watched, image, free_sampling) -> None:
    answer = watched.engine.answer(
        "how many?",
        image,
        search=SearchParams(strategy="swires", swires=SwiresParams(cutoff=9)),
        sampling=free_sampling(max_tokens=60, seed=4),
        scorer=lambda question, texts: [len(text) % 7 for text in texts],
    )
    assert len(answer.stages) == 4
    assert_nothing_held(watched.engine)


@pytest.mark.parametrize("phase", ["prefill", "decode", "judge", "verdict"])
def test_cancelled_in(watched, image, free_sampling, phase) -> None:
    """The loop is held inside a pass of the phase while the cancel is queued."""
    runner, engine = watched.runner, watched.engine
    name = "prefill" if phase in ("prefill", "judge") else "decode"
    engine.answer("warm up?", image, search=BEAM, sampling=free_sampling(2))
    is_wanted = {
        "prefill": lambda question: True,
        "decode": lambda question: question.usage.completion_tokens > 0,
        "judge": lambda question: question.usage.judge_rounds > 0,
        "verdict": lambda question: question.usage.judge_completion_tokens > 0,
    }[phase]
    step, reached, go = getattr(runner, name), threading.Event(), threading.Event()

    def held_step(*args):
        if any(map(is_wanted, watched.loop._running)):
            reached.set()
            assert go.wait(30)
        return step(*args)

    setattr(runner, name, held_step)
    mode = "generate" if phase == "verdict" else "logits"
    handle = engine.submit(
        "how many?",
        image,
        search=BEAM,
        sampling=free_sampling(max_tokens=40, seed=4),
        judge=JudgeParams(mode=mode, sampling=free_sampling(max_tokens=5)),
    )
    assert reached.wait(30)
    handle.cancel()
    go.set()
    with pytest.raises(CancelledError):
        handle.result(30)
    assert_nothing_held(engine)


def test_cancelled_while_waiting_for_an_image_slot(
    make_engine, image, wide_image, free_sampling
) -> None:
    engine = make_engine(num_image_slots=1)
    with engine.open("first?", image):
        waiting = engine.submit("second?", wide_image, sampling=free_sampling(8))
        assert not waiting.wait(0.05)
        waiting.cancel()
        with pytest.raises(CancelledError):
            waiting.result(10)
        assert engine.stats()["num_images_in_use"] == 1
    assert_nothing_held(engine)


@pytest.mark.parametrize(
    ("scorer", "error"),
    [
        (lambda question, texts: 1 / 0, ZeroDivisionError),
        (lambda question, texts: ["?"] * len(texts), ValueError),
        (lambda question, texts: [1.0], InvalidInputError),
        (lambda question, texts: [float("nan")] * len(texts), InvalidInputError),
    ],
)
def test_a_scorers_error_ends_its_question_alone(
    watched, image, free_sampling, scorer, error
) -> None:
    engine, sampling = watched.engine, free_sampling(max_tokens=60, seed=4)
    other = engine.submit("another?", image, search=BEAM, sampling=sampling)
    handle = engine.submit(
        "how many?",
        image,
        search=SearchParams(strategy="swires"),
        sampling=sampling,
        scorer=scorer,
    )
    with pytest.raises(error):
        handle.result(60)
    assert other.result(60).stages
    assert_nothing_held(engine)


def test_a_failing_image_ends_its_question_alone(watched, image, wide_image, free_sampling) -> None:
    engine, encode = watched.engine, watched.runner.encode_image

    def fail_for_wide(picture, slot):
        if picture.num_tiles > 1:
            raise RuntimeError("out of memory, say")
        encode(picture, slot)

    watched.runner.encode_image = fail_for_wide
    good, bad, last = (
        engine.submit("q?", picture, search=BEAM, sampling=free_sampling(8))
        for picture in (image, wide_image, image)
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(30)
    assert good.result(30).stages
    assert last.result(30).stages
    watched.runner.encode_image = encode
    assert engine.answer("q?", wide_image, sampling=free_sampling(8)).usage.image_encodes == 1
    assert_nothing_held(engine)


@pytest.mark.parametrize("name", ["decode", "prefill", "_compare"])
def test_a_failing_step_ends_what_runs_and_the_engine_goes_on(
    watched, image, free_sampling, name
) -> None:
    engine = watched.engine
    owner = watched.loop._judging if name == "_compare" else watched.runner
    step = getattr(owner, name)

    def fail(*args):
        setattr(owner, name, step)
        raise RuntimeError("a kernel failed")

    setattr(owner, name, fail)
    handles = [
        engine.submit("how many?", image, search=BEAM, sampling=free_sampling(40, seed=4))
        for _ in range(3)
    ]
    with pytest.raises(RuntimeError, match="a kernel failed"):
        handles[0].result(30)
    for handle in handles:
        assert handle.wait(30)
    assert_nothing_held(engine)
    assert engine.answer("q?", image, search=BEAM, sampling=free_sampling(40)).stages
    assert_nothing_held(engine)


def test_out_of_blocks(make_engine, image, free_sampling) -> None:
    """A session asks for more than there is: the error names the sizes, the session goes on."""
    engine = make_engine(num_blocks=12)
    Probe(engine, keeps_rows=False)
    with engine.open("how many?", image) as root:
        kids = root.fork(4)
        used = engine.stats()["num_used"]
        with pytest.raises(CapacityError, match="12 blocks of 16 tokens"):
            engine.decode(kids, sampling=free_sampling(max_tokens=64, ignore_eos=True))
        assert engine.stats()["num_reserved"] == 0
        assert engine.stats()["num_used"] <= used
        engine.decode(kids[:2], sampling=free_sampling(max_tokens=40, ignore_eos=True))
        assert [len(kid.last.token_ids) for kid in kids[:2] if kid.last] == [40, 40]
    assert_nothing_held(engine)


def test_session_release_and_misuse(watched, image, free_sampling) -> None:
    engine = watched.engine
    root = engine.open("how many?", image)
    kids = root.fork(3)
    engine.decode(kids, until="</S>", sampling=free_sampling(seed=3))
    kids[0].release()
    with pytest.raises(InvalidInputError, match="released"):
        engine.decode(kids, sampling=free_sampling(4))
    with pytest.raises(InvalidInputError, match="once at a time"):
        engine.decode([kids[1], kids[1]], sampling=free_sampling(4))
    with pytest.raises(InvalidInputError, match="released"):
        kids[0].fork(2)
    kids[1].commit()
    with pytest.raises(InvalidInputError, match="released or committed"):
        engine.decode([kids[2]], sampling=free_sampling(4))
    engine.decode([root], sampling=free_sampling(4))  # what went wrong changed nothing
    root.release()
    root.release()
    assert_nothing_held(engine)
    with pytest.raises(InvalidInputError, match="released"):
        root.fork(1)


def test_engine_closed_in_full_flight(make_engine, image, free_sampling) -> None:
    engine = make_engine(num_blocks=60)
    Probe(engine, keeps_rows=False)
    root = engine.open("a session?", image)
    handles = [
        engine.submit(f"{i}?", image, search=BEAM, sampling=free_sampling(40)) for i in range(8)
    ]
    for event in handles[0].events():
        if isinstance(event, (TokenText, CandidateFinished)):
            break
    engine.close()
    for handle in handles:
        assert handle.done()
    with pytest.raises(CancelledError):
        handles[-1].result()
    root.release()
    assert_nothing_held(engine)


def test_closing_races_with_submitting(make_engine, free_sampling) -> None:
    """Every question accepted before the close ends; none hangs."""
    for delay in (0.0, 0.002, 0.005):
        engine = make_engine()
        handles = []

        def submit(engine=engine, handles=handles) -> None:
            try:
                while True:
                    handles.append(engine.submit("q?", sampling=free_sampling(8)))
            except CancelledError:
                pass

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(delay)
        engine.close()
        for thread in threads:
            thread.join(30)
        assert all(handle.wait(10) for handle in handles)
