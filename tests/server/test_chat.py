"""The chat API as the official client sees it."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest

from stagebeam import SamplingParams, SearchParams

SEEDED = {"seed": 7, "temperature": 1.0, "max_tokens": 150}


def collect(stream: Any) -> dict[int, dict[str, Any]]:
    """Each choice of a stream, its pieces joined."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            kept = found.setdefault(
                choice.index,
                {"content": "", "reasoning": "", "tokens": [], "end": None, "num": 0, "events": []},
            )
            kept["content"] += choice.delta.content or ""
            kept["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            kept["num"] += bool(getattr(choice.delta, "reasoning_content", None))
            kept["end"] = choice.finish_reason or kept["end"]
            if choice.logprobs:
                kept["tokens"] += choice.logprobs.content
            extra = getattr(choice, "stagebeam", None) or {}
            if "event" in extra:
                kept["events"].append(extra["event"])
            elif extra:
                kept["report"] = extra
    return found


def test_the_reply_is_the_conclusion(served) -> None:
    reply = served.client().chat.completions.create(
        model="shapes",
        messages=served.messages(),
        **SEEDED,
        extra_body={"beam_size": 2, "include_stages": True},
    )
    answer = served.engine.answer(
        served.question,
        base64.b64decode(served.messages()[0]["content"][1]["image_url"]["url"].split(",")[1]),
        search=SearchParams(beam_size=2),
        sampling=SamplingParams(**{**SEEDED, "top_p": 0.9, "top_k": 50}),
    )
    choice = reply.choices[0]
    expected = served.engine.default_sampling
    assert (expected.top_p, expected.top_k) == (0.9, 50)
    assert choice.message.content == answer.conclusion
    head, _, _ = answer.text.partition("<CONCLUSION>")
    assert choice.message.reasoning_content == head.strip()
    assert choice.finish_reason == "stop"
    assert choice.stagebeam["seed"] == 7
    assert [stage["name"] for stage in choice.stagebeam["stages"]] == [
        stage.name for stage in answer.stages
    ]
    assert reply.usage.prompt_tokens == answer.usage.prompt_tokens
    assert reply.usage.completion_tokens == answer.usage.completion_tokens
    assert 0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.total_tokens
    assert reply.id.startswith("chatcmpl-")


@pytest.mark.parametrize("strategy", ["greedy", "stage_beam", "best_of_n", "sentence_beam"])
def test_a_stream_says_what_the_whole_reply_says(served, strategy: str) -> None:
    options: dict[str, Any] = {
        "model": "shapes",
        "messages": served.messages(),
        **SEEDED,
        "n": 2,
        "logprobs": True,
        "extra_body": {"strategy": strategy, "beam_size": 2, "max_rounds": 8, "vote_weight": 1},
    }
    client = served.client()
    whole = client.chat.completions.create(**options)
    with client.chat.completions.create(stream=True, **options) as stream:
        streamed = collect(stream)
    assert set(streamed) == {0, 1}
    for choice in whole.choices:
        told = streamed[choice.index]
        assert told["content"] == choice.message.content
        assert told["reasoning"] == (choice.message.reasoning_content or "")
        assert told["end"] == choice.finish_reason
        assert told["tokens"] == choice.logprobs.content
        joined = "".join(token.token for token in choice.logprobs.content)
        assert choice.message.content in joined
        assert all(token.logprob <= 0 for token in choice.logprobs.content)
        assert told["report"]["seed"] == 7 + choice.index


def test_a_single_candidate_streams_token_by_token(served) -> None:
    with served.client().chat.completions.create(
        model="shapes",
        messages=served.messages(),
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"strategy": "greedy"},
    ) as stream:
        chunks = list(stream)
    told = collect(chunks)[0]
    assert told["content"]
    assert told["num"] > 10
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    num_reply = usage.completion_tokens - usage.completion_tokens_details.reasoning_tokens
    assert 0 < num_reply < usage.completion_tokens_details.reasoning_tokens
    assert not any(getattr(chunk, "usage", None) for chunk in chunks[:-1])


def test_events_ride_along(served) -> None:
    with served.client().chat.completions.create(
        model="shapes",
        messages=served.messages(),
        stream=True,
        **SEEDED,
        extra_body={"beam_size": 2, "stream_events": True},
    ) as stream:
        told = collect(stream)[0]
    types = [event["type"] for event in told["events"]]
    assert types[0] == "stage_started"
    assert types[-1] == "done"
    assert {"token_text", "candidate_finished", "match_judged", "stage_committed"} <= set(types)
    assert told["events"][-1]["answer"]["conclusion"] == told["content"]


def test_stop_strings_cut_the_reply_only(served) -> None:
    options: dict[str, Any] = {
        "model": "shapes",
        "messages": served.messages(),
        "extra_body": {"strategy": "greedy"},
    }
    client = served.client()
    content = client.chat.completions.create(**options).choices[0].message.content
    stop = content[len(content) // 2 :][:2]
    cut = client.chat.completions.create(**options, stop=[stop, "never"]).choices[0]
    assert cut.message.content == content[: content.index(stop)]
    assert cut.message.reasoning_content
    assert cut.finish_reason == "stop"
    with client.chat.completions.create(**options, stop=stop, stream=True) as stream:
        assert collect(stream)[0]["content"] == cut.message.content


def test_max_tokens(served) -> None:
    reply = served.client().chat.completions.create(
        model="shapes",
        messages=served.messages(),
        max_completion_tokens=3,
        extra_body={"beam_size": 1},
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content == ""
    assert reply.choices[0].stagebeam["finish_reason"] == "length"


def test_a_chat_with_a_system_turn_and_history(served) -> None:
    reply = served.client().chat.completions.create(
        model="shapes",
        messages=[
            {"role": "system", "content": "Answer in one word."},
            *served.messages("What is at the center?"),
            {"role": "assistant", "content": "a circle", "reasoning_content": "left out"},
            {"role": "user", "content": served.question},
        ],
        max_tokens=20,
        extra_body={"strategy": "greedy"},
    )
    assert reply.usage.prompt_tokens > 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra_body": {"beam_siz": 3}}, "unknown field 'beam_siz'; did you mean 'beam_size'"),
        ({"extra_body": {"beam_size": 0}}, "beam_size"),
        ({"extra_body": {"beam_size": 500}}, "max_branches"),
        ({"extra_body": {"strategy": "swires"}}, "strategy"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "user"),
        ({"messages": [{"role": "user", "content": "  "}]}, "no text"),
        ({"messages": [{"role": "user", "content": "what is <|image|>?"}]}, "image token"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unknown field 'tools'"),
        ({"stop": [""]}, r"stop\.0: .*at least 1 character"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            r"messages\.0\.content\.0\.image_url: ",
        ),
        ({"messages": [{"role": "user"}]}, r"the field 'messages\.0\.content' is missing"),
    ],
)
def test_faults_are_said_in_words(served, change: dict[str, Any], words: str) -> None:
    options = {"model": "shapes", "messages": served.messages(), **change}
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        served.client().chat.completions.create(**options)
    assert caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,AAAA", "cannot be read: no known format"),
        ("data:image/png;base64,@@@", "damaged"),
        ("data:nothing", "comma"),
        ("http://127.0.0.1/scene.png", "switched off"),
        ("file:///etc/hostname", "switched off"),
        ("ftp://example.org/x.png", "must begin with"),
        ("http://[", "URL"),
    ],
)
def test_images_that_are_refused(served, url: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        served.client().chat.completions.create(model="shapes", messages=served.messages(url=url))


def test_a_body_that_is_no_json(served) -> None:
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions", b"{bad", {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(request, timeout=60)
    error = json.load(caught.value)["error"]
    assert error["message"].startswith("the body is not JSON: ")
    assert error["param"] is None


def test_two_images_are_refused(served) -> None:
    turn = served.messages()[0]
    with pytest.raises(openai.BadRequestError, match="one image, got 2"):
        served.client().chat.completions.create(model="shapes", messages=[turn, turn])


def test_another_model_is_not_found(served) -> None:
    with pytest.raises(openai.NotFoundError, match="'shapes' is"):
        served.client().chat.completions.create(model="gpt", messages=served.messages())


def test_models(served) -> None:
    (model,) = served.client().models.list().data
    assert model.id == "shapes"
    assert model.stagebeam["stages"] == ["summary", "caption", "reasoning", "conclusion"]


def test_a_deadline(served, slow_engine) -> None:
    with pytest.raises(openai.InternalServerError, match="no answer within") as caught:
        served.client().chat.completions.create(
            model="shapes",
            messages=served.messages(),
            extra_body={"beam_size": 4, "deadline_seconds": 0.05},
        )
    assert caught.value.status_code == 504
    with (
        pytest.raises(openai.APIError, match="no answer within"),
        served.client().chat.completions.create(
            model="shapes",
            messages=served.messages(),
            stream=True,
            extra_body={"beam_size": 4, "deadline_seconds": 0.5},
        ) as stream,
    ):
        list(stream)


def test_the_raw_stream(served) -> None:
    body = {"messages": served.messages(), "stream": True, "strategy": "greedy"}
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-Request-Id": "my-id"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"] == "my-id"
        lines = response.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    first = json.loads(lines[0].removeprefix("data: "))
    assert first["id"] == "chatcmpl-my-id"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
