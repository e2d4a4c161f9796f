"""Keys, sizes, queues, disconnects, metrics and the drain: what an operator relies on."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.server.settings import ServerSettings


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as r:
            return r.status, dict(r.headers), r.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_api_key(serve) -> None:
    served = serve(api_key="secret")
    assert len(served.client(api_key="secret").models.list().data) == 1
    with pytest.raises(openai.AuthenticationError, match="API key"):
        served.client(api_key="guess").models.list()
    status, headers, _ = get(f"{served.url}/v1/models")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert get(f"{served.url}/health")[0] == 200
    assert get(f"{served.url}/metrics")[0] == 200
    assert b"secret" not in repr(served.settings).encode()


def test_bodies_that_are_too_large(serve) -> None:
    served = serve(max_body_bytes=2000)
    with pytest.raises(openai.APIStatusError) as caught:
        served.client().chat.completions.create(
            model="shapes", messages=served.messages("x" * 3000, url=None)
        )
    assert caught.value.status_code == 413
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    head = b'{"messages":[{"role":"user","content":"'
    connection.request(  # no content-length: the bytes are counted as they come
        "POST",
        "/v1/chat/completions",
        body=iter([head, *[b"x" * 500] * 10]),
        headers={"Content-Type": "application/json"},
        encode_chunked=True,
    )
    response = connection.getresponse()
    assert response.status == 413
    assert "larger than 2000 bytes" in json.loads(response.read())["error"]["message"]
    connection.close()


def test_images_that_are_too_large(serve) -> None:
    served = serve(max_image_bytes=100)
    with pytest.raises(openai.BadRequestError, match="more than 100 bytes"):
        served.client().chat.completions.create(model="shapes", messages=served.messages())


def test_a_full_queue_is_429(serve) -> None:
    served = serve(max_questions=2)
    client = served.client()

    def ask(i: int) -> str:
        try:
            client.chat.completions.create(
                model="shapes", messages=served.messages(), extra_body={"beam_size": 4}, seed=i
            )
        except openai.RateLimitError as error:
            return f"429 after {error.response.headers['retry-after']}"
        return "ok"

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(ask, range(8)))
    assert "ok" in results
    assert "429 after 1" in results
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="shapes", messages=served.messages(), n=3)
    served.assert_idle()


def request_bytes(served: Any, **options: Any) -> bytes:
    body = json.dumps({"messages": served.messages(), **options}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_everything(served, stream: bool) -> None:
    """A wide search with long stages would run for many seconds; it ends within a few steps."""
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.sendall(request_bytes(served, stream=stream, beam_size=16, n=4))
    while served.engine.stats()["num_running"] < 4:
        time.sleep(0.005)
    assert served.engine.stats()["num_used"] > 0
    failures = failure_count(served)
    connection.close()
    served.assert_idle()
    assert failure_count(served) == failures + 1


def failure_count(served: Any) -> int:
    text = get(f"{served.url}/metrics")[2].decode()
    found = re.search(r'request_failure_total\{[^}]*status="disconnected"\} (\d+)', text)
    return int(found[1]) if found else 0


def test_metrics(served) -> None:
    served.client().chat.completions.create(
        model="shapes", messages=served.messages(), extra_body={"beam_size": 2}
    )
    status, headers, body = get(f"{served.url}/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    text = body.decode()
    for name in (
        "time_to_first_token_seconds_count",
        "time_per_output_token_seconds_bucket",
        "e2e_request_latency_seconds_sum",
        "request_queue_time_seconds_count",
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "kv_sharing_ratio",
        "prompt_tokens_total",
        "generation_tokens_total",
        "judge_calls_total",
        'request_success_total{finished_reason="tag",model_name="shapes"}',
    ):
        assert f"\nstagebeam:{name}" in text, name
    shared, unshared = (
        float(re.search(rf"stagebeam:{name}_total\{{.*\}} (.*)", text)[1])
        for name in ("kv_peak_blocks", "kv_peak_blocks_unshared")
    )
    assert unshared > shared > 0


def test_request_ids(served) -> None:
    given = get(f"{served.url}/health", **{"X-Request-Id": "abc"})[1]["x-request-id"]
    assert given == "abc"
    made = {get(f"{served.url}/health")[1]["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert "\t" not in get(f"{served.url}/health", **{"X-Request-Id": "a\tb"})[1]["x-request-id"]


def test_the_page_is_there(served) -> None:
    status, headers, body = get(f"{served.url}/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert body.startswith(b"<!doctype html>")


@pytest.mark.parametrize(
    "options",
    [
        {"model_name": ""},
        {"api_key": "two words"},
        {"max_questions": 0},
        {"deadline_seconds": -1.0},
    ],
)
def test_settings_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ServerSettings(**{"model_name": "m", **options})


def test_sigterm_lets_running_requests_end() -> None:
    """The command itself: it serves, drains at SIGTERM, frees the port and exits with 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "stagebeam.cli", "serve", "--port", str(port)),
            *("--kv-cache-bytes", str(64 << 20)),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            try:
                if get(f"{url}/health")[0] == 200:
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=120)
        model = client.models.list().data[0].id
        began, told = threading.Event(), []

        def ask() -> None:
            with client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "What is at the center?"}],
                stream=True,
                extra_body={"beam_size": 8},
            ) as stream:
                for chunk in stream:
                    began.set()
                    told.append(chunk)

        thread = threading.Thread(target=ask)
        thread.start()
        assert began.wait(60)
        process.send_signal(signal.SIGTERM)
        thread.join(120)
        assert told[-1].choices[0].finish_reason
        assert process.wait(60) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/health", timeout=5)
    finally:
        process.kill()
        process.wait()
