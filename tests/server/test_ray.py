"""Two replicas on a local Ray: answers, disconnects, and a replica that is killed under load."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from stagebeam.cli import main  # noqa: E402
from stagebeam.engine.server.front import Front  # noqa: E402
from stagebeam.engine.server.guards import Guards  # noqa: E402
from stagebeam.engine.server.replicas import LeastLoaded, start_replicas  # noqa: E402
from stagebeam.engine.server.settings import ServerSettings  # noqa: E402

OPTIONS = {"path": None, "device": "cpu", "kv_cache_bytes": 64 << 20}
LONG = {"strategy": "best_of_n", "beam_size": 4, "temperature": 1.0, "max_tokens": 150}


@pytest.fixture(scope="module")
def url(local_ray: None) -> Iterator[str]:
    """The address of a front before two replicas."""
    settings = ServerSettings(model_name="shapes")
    replicas = start_replicas(OPTIONS, settings, num_replicas=2, num_cpus=0.5, num_gpus=0)
    app = Guards(Front(replicas), api_key="secret", max_body_bytes=4000)
    config = uvicorn.Config(app, port=0, lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    ray.serve.shutdown()  # its processors are for the next tests


def post(url: str, key: str = "secret", **body: Any):
    message = {"role": "user", "content": "How many big crosses are there?"}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    headers["X-Request-Id"] = f"seed-{body.get('seed')}"
    data = json.dumps({"messages": [message], **body}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
    return urllib.request.urlopen(request, timeout=300)


def metric(url: str, name: str) -> float:
    """The sum over replicas of one of the metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"stagebeam:{name}"))


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def kill_a_replica() -> None:
    names = [n for n in ray.util.list_named_actors(all_namespaces=True) if "Replica#" in n["name"]]
    assert len(names) == 2
    ray.kill(ray.get_actor(**names[0]))


def test_an_answer_through_the_front(url: str) -> None:
    with post(url, seed=1, strategy="greedy") as response:
        assert response.headers.get_all("x-request-id") == ["seed-1"]
        first = json.load(response)
    assert first["id"] == "chatcmpl-seed-1"
    with post(url, seed=1, strategy="greedy", stream=True) as response:
        lines = [line for line in response.read().decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
    content = first["choices"][0]["message"]["content"]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    for key, body, status in (("guess", {}, 401), ("secret", {"n": 0}, 400)):
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            post(url, key, **body)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        post(url, user="x" * 5000)


def test_a_client_that_leaves_frees_its_questions(url: str) -> None:
    for seed in range(2, 12):  # an answer may be whole before its client is missed
        with post(url, seed=seed, stream=True, stream_events=True, **LONG) as response:
            while b"token_text" not in response.readline():
                pass
        until(lambda: metric(url, "num_requests_running") == 0)
        if metric(url, "request_failure_total") >= 1:
            break
    assert metric(url, "request_failure_total") >= 1


def test_no_question_is_lost_with_a_replica(url: str) -> None:
    begun = threading.Barrier(5)  # the streams that have begun, and the killer

    def ask(seed: int) -> str:
        with post(url, seed=seed, **LONG) as response:
            return json.load(response)["choices"][0]["finish_reason"]

    def stream(seed: int) -> str:
        with post(url, seed=seed, stream=True, stream_events=True, **LONG) as response:
            head = b""
            while b"token_text" not in head:
                head = response.readline()
            begun.wait(240)
            *_, last, end = [line for line in response.read().split(b"\n\n") if line]
        assert end == b"data: [DONE]"
        found = json.loads(last[6:])
        return found["error"]["code"] if "error" in found else "stop"

    with ThreadPoolExecutor(10) as threads:
        streams = [threads.submit(stream, seed) for seed in range(4)]
        asked = [threads.submit(ask, seed) for seed in range(4, 10)]
        begun.wait(240)
        kill_a_replica()
        told = [one.result(300) for one in streams]
        answered = [one.result(300) for one in asked]
    assert set(answered) <= {"stop", "length"}
    assert set(told) <= {"stop", "replica_lost"}
    # Both replicas had some of the ten: what the dead one had was broken off in words or asked again.
    assert metric(url, "replica_lost_requests_total") >= 1
    with post(url, seed=1, strategy="greedy") as response:
        assert json.load(response)["choices"][0]["message"]["content"]
    until(lambda: metric(url, "num_requests_running") == 0)


def test_a_full_replica_is_asked_last() -> None:
    stats = [{}, {"num_waiting": 3, "num_free_blocks": 9}, {"num_waiting": 0, "num_free_blocks": 0}]
    replicas = [SimpleNamespace(routing_stats=one) for one in stats]
    ranks = asyncio.run(LeastLoaded.choose_replicas(None, replicas))
    assert ranks == [replicas[:1], replicas[1:]]


def test_without_ray_the_extra_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--ray"]) == 2
    assert "pip install 'stagebeam[ray]'" in capsys.readouterr().err
