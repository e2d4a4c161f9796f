"""The user's faults: each a ValueError that says what is wrong, before anything is taken."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from probe import assert_nothing_held

from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import (
    CancelledError,
    CapacityError,
    CheckpointError,
    ImageError,
    InvalidInputError,
)
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.stages import Stage, StagePlan


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A small file that says it is a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    )


@pytest.fixture
def refuses(engine, free_sampling):
    """Every entry refuses the arguments with the error and holds nothing."""

    def check(error: type[Exception], match: str, *arguments, **options) -> None:
        options = {"sampling": free_sampling(4), **options}
        for entry in (engine.answer, engine.submit):
            with pytest.raises(error, match=match):
                entry(*arguments, **options)
            assert_nothing_held(engine)
        assert issubclass(error, ValueError)

    return check


@pytest.mark.parametrize("question", ["", "  \n", None, 7, b"how many?", [], ["how many?"], [{}]])
def test_questions(refuses, image, question) -> None:
    refuses(InvalidInputError, "question|message", question, image)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "hello"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": ["text"]}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "no image part"}]}],
    ],
)
def test_messages(refuses, image, messages) -> None:
    refuses(InvalidInputError, "message|image", messages, image)


def test_image_tokens_in_the_text(refuses, image) -> None:
    refuses(InvalidInputError, "an image token but no image", "look: <|image|>")
    refuses(InvalidInputError, "2 image tokens", "look: <|image|>", image)


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "empty", "text", "bomb", "missing"])
def test_images(refuses, image, tmp_path, damage) -> None:
    data = png(image)
    broken: object = {
        "truncated": data[: len(data) // 2],
        "corrupt": data[:60] + b"\xff" * 60 + data[120:],
        "empty": b"",
        "text": b"this is no image",
        "bomb": bomb(30_000),
        "missing": tmp_path / "none.png",
    }[damage]
    refuses(ImageError, "image", "how many?", broken)


@pytest.mark.parametrize("picture", [3, ["a.png"], {"path": "a.png"}, object()])
def test_images_of_a_wrong_type(refuses, picture) -> None:
    refuses(ImageError, "path, bytes or a PIL image", "how many?", picture)


def test_an_image_for_a_text_only_model(make_engine, llama, image, free_sampling) -> None:
    engine = make_engine(llama)
    with pytest.raises(ImageError, match="text-only"):
        engine.answer("how many?", image, sampling=free_sampling(4))
    with pytest.raises(ImageError, match="text-only"):
        engine.open("how many?", image)
    content = [{"type": "image"}, {"type": "text", "text": "how many?"}]
    with pytest.raises(ImageError, match="text-only"):
        engine.answer([{"role": "user", "content": content}], sampling=free_sampling(4))
    assert engine.answer("how many?", sampling=free_sampling(4)).stages


def test_prompts_longer_than_the_context(refuses, engine, image) -> None:
    refuses(CapacityError, "leaves no room in the context of 2048", "x" * 3000, image)
    with pytest.raises(CapacityError, match="leaves no room"):
        engine.open("x" * 3000, image)


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True, 10**9])
def test_beam_sizes(value) -> None:
    with pytest.raises(InvalidInputError, match="beam_size must be"):
        SearchParams(beam_size=value)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (SearchParams, {"strategy": "beam"}, "strategy must be one of greedy"),
        (SearchParams, {"strategy": None}, "strategy"),
        (SearchParams, {"max_rounds": 0}, "max_rounds"),
        (JudgeParams, {"mode": "vote"}, "mode must be one of"),
        (JudgeParams, {"schedule": []}, "schedule must be one of"),
        (JudgeParams, {"gate": 1}, "gate must be None or a bool"),
        (JudgeParams, {"vote_weight": -0.5}, "vote_weight must be a finite number >= 0"),
        (JudgeParams, {"vote_weight": float("inf")}, "vote_weight"),
        (JudgeParams, {"vote_weight": "1"}, "vote_weight"),
        (SamplingParams, {"max_tokens": 0}, "max_tokens"),
        (SamplingParams, {"temperature": float("nan")}, "temperature"),
        (SamplingParams, {"top_p": 0}, "top_p"),
        (SamplingParams, {"seed": -1}, "seed"),
        (SamplingParams, {"stop": "a string"}, "stop"),
        (SamplingParams, {"n": 0}, "n must be"),
    ],
)
def test_parameters(kind, options, match) -> None:
    with pytest.raises(InvalidInputError, match=match):
        kind(**options)


@pytest.mark.parametrize("name", ["search", "sampling", "judge", "plan"])
def test_arguments_of_a_wrong_type(refuses, engine, name) -> None:
    for value in ("stage_beam", {"beam_size": 4}, 3):
        refuses(InvalidInputError, f"{name} must be None or", "how many?", **{name: value})


def test_a_search_without_what_it_needs(refuses, engine, image) -> None:
    short = StagePlan(stages=(Stage(name="one", tag="ONE", criterion="is good"),))
    swires = SearchParams(strategy="swires")
    refuses(InvalidInputError, "needs a scorer", "how many?", image, search=swires)
    refuses(
        InvalidInputError,
        "last three stages",
        "how many?",
        image,
        search=swires,
        plan=short,
        scorer=lambda question, texts: [0.0],
    )


def test_more_branches_than_rows(make_engine, image, free_sampling) -> None:
    engine = make_engine(max_branches=4)
    with pytest.raises(CapacityError, match="5 branches at once but max_branches is 4"):
        engine.answer("q?", image, search=SearchParams(beam_size=5), sampling=free_sampling(4))
    with engine.open("q?", image) as root:
        kids = root.fork(5)
        with pytest.raises(InvalidInputError, match="5 branches exceed max_branches 4"):
            engine.decode(kids, sampling=free_sampling(4))
        for count in (0, -1, 1.0, True):
            with pytest.raises(InvalidInputError, match="fork needs"):
                root.fork(count)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="branches of one session"):
            engine.decode([])
        with (
            engine.open("another?", image) as other,
            pytest.raises(InvalidInputError, match="branches of one session"),
        ):
            engine.score([(root, other)], criterion="is better")


@pytest.mark.parametrize(
    "questions", ["how many?", {"question": "q?"}, [3], [("a", "b", "c")], [{"text": "q?"}]]
)
def test_lists_of_questions(engine, questions) -> None:
    with pytest.raises(InvalidInputError, match="question"):
        engine.answer_many(questions)


def test_one_bad_question_cancels_the_others(engine, image, free_sampling) -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        engine.answer_many(["good?", "fine?", " "], sampling=free_sampling(30))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot read the stage plan"),
        ("[]", "must be a JSON object"),
        ("{}", "at least one stage"),
        ('{"stages": 3}', "stages"),
        ('{"stages": [3]}', "must be a JSON object"),
        ('{"stages": [{"tag": "A"}]}', "name"),
        ('{"stages": [{"name": "a", "tag": "<A>"}]}', "must be a word"),
        ('{"stages": [{"name": "a", "tag": "A", "extra": 1}]}', "unknown keys"),
        ('{"stages": [{"name": "a", "tag": "A"}]}', "needs a criterion"),
        (
            '{"stages": [{"name": "a", "tag": "A", "criterion": "b", "hints": ["c"]}]}',
            "earlier stages",
        ),
        (
            '{"stages": [{"name": "a", "tag": "A", "criterion": "b"}], "prompts": {"pair": "{x}"}}',
            "must use the fields",
        ),
        (
            '{"stages": [{"name": "a", "tag": "A", "criterion": "b", "max_tokens": 0}]}',
            "max_tokens must be",
        ),
        (
            '{"stages": [{"name": "a", "tag": "A", "criterion": "b", "sampling": {"top_p": 2}}]}',
            "top_p",
        ),
    ],
)
def test_stage_plans(tmp_path, content, match) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=match):
        StagePlan.from_json(path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_branches": 0}, "max_branches"),
        ({"kv_cache_bytes": "1 GB"}, "kv_cache_bytes"),
        ({"num_image_slots": -2}, "num_image_slots"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"max_model_len": 10**6}, "max_model_len must be in 2"),
        ({"max_model_len": "512"}, "max_model_len"),
        ({"dtype": "int3"}, "dtype must be auto, float32, .*int4, got 'int3'"),
        ({"dtype": "int8", "backend": "reference"}, "packed weights need a CPU"),
        ({"dtype": "float16", "backend": "native"}, "native backend's formats are float32"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype must be"),
        ({"kv_cache_dtype": "int8", "backend": "reference"}, "leave it at auto"),
        ({"num_threads": 0}, "num_threads"),
        ({"device": "tpu"}, "device must be"),
        ({"backend": "fastest"}, "backend"),
        ({"add_bos": "yes"}, "add_bos must be"),
        ({"plan": {"stages": []}}, "plan must be"),
        ({"kv_cache_bytes": 10}, "raise kv_cache_bytes"),
        ({"kv_cache_bytes": 1 << 16, "max_model_len": 2000}, "max_model_len 2000 needs 125 blocks"),
    ],
)
def test_engine_options(mllama, options, match) -> None:
    with pytest.raises(ValueError, match=match):
        Engine(mllama.folder, **options)


def test_checkpoint_folders(mllama, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Engine(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Engine(tmp_path)
    folder = Path(shutil.copytree(mllama.folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2' is not supported"):
        Engine(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "stage_plan.json").write_text('{"stages": []}')
    with pytest.raises(ValueError, match="at least one stage"):
        Engine(folder, kv_cache_bytes=1 << 20)
    (folder / "stage_plan.json").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="safetensors"):
        Engine(folder, kv_cache_bytes=1 << 20)


def test_a_closed_engine(make_engine, image, free_sampling) -> None:
    engine = make_engine()
    root = engine.open("how many?", image)
    engine.close()
    for use in (
        lambda: engine.answer("q?", sampling=free_sampling(4)),
        lambda: engine.generate("q?", free_sampling(4)),
        lambda: engine.open("q?", image),
        lambda: engine.judge("q?", image, [("a", "b")], "is better"),
        lambda: root.fork(2),
    ):
        with pytest.raises(CancelledError, match="closed"):
            use()
    root.release()
