"""The C interface over the real engine: the same events, tokens and refusals as in Python."""

from __future__ import annotations

import ctypes
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from c_structs import EngineParams, Event, Image, Stats, question_params

from stagebeam import Engine, SamplingParams, SearchParams
from stagebeam.engine.events import event_to_dict

OK, INVALID_ARGUMENT, INVALID_HANDLE, IMAGE_ERROR, CHECKPOINT_ERROR, CAPACITY = 0, 1, 2, 3, 4, 5
CANCELLED, TIMEOUT, END, DEADLINE = 6, 7, 8, 11
DONE, FAILED = 6, 7
PATH, ENCODED, RGB = 1, 2, 3
OPTIONS = {"beam_size": 3, "max_tokens": 40, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


def ask(seed: int, **changes: Any) -> dict[str, Any]:
    return {**OPTIONS, "has_seed": 1, "seed": seed, **changes}


def settled(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without the seconds that the answer took."""
    for document in documents:
        if document["type"] == "done":
            del document["answer"]["timings"]
    return documents


@pytest.fixture(scope="module")
def python_engine(tiny_folder):
    with Engine(tiny_folder, kv_cache_bytes=4 << 20) as engine:
        yield engine


def python_documents(engine: Engine, seed: int, image: Any) -> list[dict[str, Any]]:
    search = SearchParams(beam_size=3)
    sampling = SamplingParams(max_tokens=40, temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    handle = engine.submit("how many?", image, search=search, sampling=sampling)
    return settled([json.loads(json.dumps(event_to_dict(event))) for event in handle.events()])


def test_events_are_pythons(client, python_engine, scene, scene_path) -> None:
    question = client.submit("how many?", Image(kind=PATH, path=str(scene_path).encode()), **ask(5))
    assert settled(client.documents(question)) == python_documents(python_engine, 5, scene)


def test_fields_are_the_documents(client) -> None:
    question = client.submit("how many?", **ask(3))
    for event in client.events(question):
        data = json.loads(event.json)
        match data["type"]:
            case "stage_started":
                assert event.num_candidates == data["num_candidates"]
                assert event.first_candidate == data["first_candidate"]
            case "token_text":
                assert ctypes.string_at(event.text, event.text_bytes).decode() == data["text"]
                assert event.token_ids[: event.num_tokens] == data["token_ids"]
                assert event.logprobs[: event.num_tokens] == data["logprobs"]
            case "candidate_finished":
                assert event.finish_reason.decode() == data["finish_reason"]
            case "match_judged":
                names = ("first", "second", "winner", "probability")
                assert [getattr(event, name) for name in names] == [data["match"][n] for n in names]
            case "stage_committed":
                assert (event.winner, event.text.decode()) == (data["winner"], data["text"])
            case "done":
                assert event.text.decode() == data["answer"]["conclusion"]
        for name in ("stage", "candidate", "round"):
            if name in data:
                value = getattr(event, name)
                assert (value.decode() if name == "stage" else value) == data[name]
    assert event.type == DONE
    assert client.library.stagebeam_question_destroy(question) == OK


def test_an_image_by_path_by_bytes_and_by_pixels(client, scene, scene_path) -> None:
    pixels = np.asarray(scene)
    height, width, _ = pixels.shape
    padded = np.full((height, width + 5, 3), 77, np.uint8)
    padded[:, :width] = pixels
    raw, file = padded.tobytes(), scene_path.read_bytes()
    images = [
        Image(kind=PATH, path=str(scene_path).encode()),
        Image(kind=ENCODED, data=file, num_bytes=len(file)),
        Image(kind=RGB, data=pixels.tobytes(), num_bytes=pixels.size, width=width, height=height),
        Image(
            kind=RGB,
            data=raw,
            num_bytes=len(raw) - 15,  # the last row need not be padded
            width=width,
            height=height,
            stride_bytes=3 * (width + 5),
        ),
    ]
    answers = [settled(client.documents(client.submit("how many?", i, **ask(1)))) for i in images]
    assert all(answer == answers[0] for answer in answers)


def test_many_in_flight_get_pythons_tokens(client, python_engine, scene, scene_path) -> None:
    image = Image(kind=PATH, path=str(scene_path).encode())
    questions = [client.submit("how many?", image, **ask(seed)) for seed in range(16)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(client.documents, questions))
    for seed in (0, 7, 15):
        expected = python_documents(python_engine, seed, scene)[-1]["answer"]["stages"]
        got = found[seed][-1]["answer"]["stages"]
        ids = [[c["token_ids"] for c in stage["candidates"]] for stage in got]
        assert ids == [[c["token_ids"] for c in stage["candidates"]] for stage in expected]


def test_refusals_say_what_python_says(client) -> None:
    cases = [
        ({"text": "  "}, INVALID_ARGUMENT, "the question is empty"),
        ({"text": "a", "beam_size": 0}, INVALID_ARGUMENT, "beam_size must be"),
        ({"text": "a", "strategy": b"guess"}, INVALID_ARGUMENT, "strategy must be one of"),
        ({"text": "a", "judge_mode": b"dice"}, INVALID_ARGUMENT, "mode must be one of"),
        ({"text": "a", "temperature": -1.0}, INVALID_ARGUMENT, "temperature must be"),
        ({"text": "a", "deadline_seconds": -1.0}, INVALID_ARGUMENT, "deadline_seconds must be"),
        ({"text": "a", "beam_size": 100}, CAPACITY, "max_branches"),
        ({"text": "a", "image": Image(kind=PATH, path=b"/nowhere")}, IMAGE_ERROR, "not a file"),
        ({"text": "a", "image": Image(kind=ENCODED, data=b"x", num_bytes=1)}, IMAGE_ERROR, "read"),
    ]
    for arguments, status, words in cases:
        assert client.try_submit(**arguments) == (status, 0), arguments
        assert words in client.error()
    handle = ctypes.c_uint64(1)
    params = EngineParams(path=b"/nowhere")
    assert client.library.stagebeam_engine_create(params, handle) == CHECKPOINT_ERROR
    assert handle.value == 0
    assert "/nowhere" in client.error()


def test_text_that_is_not_utf8_is_refused(client) -> None:
    handle = ctypes.c_uint64()
    status = client.library.stagebeam_submit(client.engine, b"\xff\xfe", None, None, handle)
    assert status == INVALID_ARGUMENT
    assert "utf-8" in client.error()


def test_cancel_and_deadline(client) -> None:
    long = question_params(beam_size=3, max_tokens=400, temperature=1.0, top_k=0)
    for params, expected in ((long, CANCELLED), (question_params(deadline_seconds=1e-6), DEADLINE)):
        handle = ctypes.c_uint64()
        assert client.library.stagebeam_submit(client.engine, b"a?", None, params, handle) == OK
        if expected == CANCELLED:
            assert client.library.stagebeam_question_cancel(handle) == OK
        *_, last = client.events(handle.value)
        assert (last.type, last.status) == (FAILED, expected)
        assert client.library.stagebeam_question_cancel(handle) == OK
        assert client.library.stagebeam_question_next(handle, 0, last) == END
        assert client.library.stagebeam_question_destroy(handle) == OK
        assert client.library.stagebeam_question_destroy(handle) == INVALID_HANDLE


def test_a_second_engine_and_its_end(client, tiny_folder) -> None:
    other = client.create(path=str(tiny_folder).encode(), kv_cache_bytes=4 << 20)
    first, second = client.submit("a?", **ask(2)), client.submit("a?", engine=other, **ask(2))
    assert settled(client.documents(first)) == settled(client.documents(second))
    running = client.submit("a?", engine=other, **ask(1, max_tokens=400))
    assert client.library.stagebeam_engine_destroy(other) == OK
    assert client.documents(running)[-1]["type"] in ("failed", "done")
    assert client.try_submit("a?", engine=other) == (INVALID_HANDLE, 0)


def test_random_calls_never_crash(client, scene_path) -> None:
    """Null and stale handles, double destroys, wrong sizes, use after cancel, from four threads."""
    library = client.library
    image = Image(kind=PATH, path=str(scene_path).encode())

    def call(seed: int) -> set[int]:
        draw = random.Random(seed)
        handles = [0, 1, client.engine, 2**64 - 1]
        seen = set()
        for _ in range(120):
            handle = draw.choice(handles[-6:]) ^ (draw.random() < 0.1) << draw.randrange(64)
            match draw.randrange(11):
                case 0 | 1:
                    out = ctypes.c_uint64()
                    params = question_params(**ask(seed, max_tokens=draw.choice([1, 8, 300])))
                    params.size += draw.choice([0, 0, 0, -8, 8, 10**9])
                    picture = draw.choice([None, image, Image(kind=draw.randrange(-1, 9))])
                    text = draw.choice([b"a?", b"", None, b"b?"])
                    engine = draw.choice([client.engine, client.engine, handle])
                    status = library.stagebeam_submit(engine, text, picture, params, out)
                    if status == OK:
                        handles.append(out.value)
                case 2 | 3:
                    event = Event()
                    event.size += draw.choice([0, 0, 0, -1, -100])
                    event_or_null = draw.choice([event, event, event, None])
                    status = library.stagebeam_question_next(
                        handle, draw.choice([0, 5]), event_or_null
                    )
                case 4:
                    status = library.stagebeam_question_cancel(handle)
                case 5:
                    status = library.stagebeam_question_destroy(handle)
                case 6:
                    stats = Stats()
                    stats.size += draw.choice([0, 0, -8, 10**9])
                    status = library.stagebeam_engine_stats(handle, draw.choice([stats, None]))
                case 7:
                    if handle == client.engine:
                        continue
                    status = library.stagebeam_engine_destroy(handle)
                case 8:
                    params = EngineParams(path=draw.choice([b"/nowhere", b"\xff"]))
                    params.size += draw.choice([0, 0, -8, -1000, 10**9])
                    params.dtype = draw.choice([None, b"float31"])
                    out = draw.choice([None, ctypes.c_uint64()])
                    status = library.stagebeam_engine_create(params, out)
                    assert status != OK
                case 9:
                    kind = draw.choice(["engine", "question"])
                    fill = getattr(library, f"stagebeam_{kind}_default_params")
                    params = EngineParams() if kind == "engine" else question_params()
                    size = ctypes.c_size_t(draw.choice([params.size, params.size, 0, 8, 1]))
                    status = fill(draw.choice([ctypes.byref(params), None]), size)
                case _:
                    assert library.stagebeam_status_name(draw.randrange(-3, 99)) is not None
                    assert library.stagebeam_abi_version() > 0
                    continue
            seen.add(status)
        for handle in handles:
            if handle != client.engine:
                library.stagebeam_question_destroy(handle)
        return seen

    with ThreadPoolExecutor(4) as threads:
        seen = set().union(*threads.map(call, range(4)))
    assert seen <= {OK, INVALID_ARGUMENT, INVALID_HANDLE, IMAGE_ERROR, CAPACITY, TIMEOUT, END}
    assert {OK, INVALID_ARGUMENT, INVALID_HANDLE} <= seen
    last = client.documents(client.submit("still there?", **ask(1)))
    assert last[-1]["type"] == "done"
