"""A server on the bundled checkpoint, on a free port of this machine, and an `openai` client of it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("openai", reason="the official client is not installed")

import openai
import uvicorn

from stagebeam import AsyncEngine, Engine
from stagebeam.engine.checkpoints import ASSETS
from stagebeam.engine.cli.ray_options import cluster
from stagebeam.engine.server.app import create_app
from stagebeam.engine.server.settings import ServerSettings

MODEL = "shapes"
SCENE = ASSETS / "examples" / "scene.png"
SCENE_URL = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()


@dataclass
class Served:
    """A running server."""

    engine: Engine
    settings: ServerSettings
    port: int
    app: Any
    question: str = field(
        default_factory=lambda: SCENE.with_suffix(".txt").read_text(encoding="utf-8").strip()
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 120, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def messages(self, text: str | None = None, url: str | None = SCENE_URL) -> list[Any]:
        content: list[Any] = [{"type": "text", "text": text or self.question}]
        if url is not None:
            content.append({"type": "image_url", "image_url": {"url": url}})
        return [{"role": "user", "content": content}]

    def assert_idle(self) -> None:
        """Wait for the engine to be empty: every block and slot back."""
        ends_at = time.monotonic() + 30
        while time.monotonic() < ends_at:
            stats = self.engine.stats()
            if stats["num_running"] == stats["num_waiting"] == 0:
                break
            time.sleep(0.01)
        stats = self.engine.stats()
        assert stats["num_free"] == stats["num_blocks"], stats
        assert stats["num_reserved"] == stats["num_sequences"] == stats["num_images_in_use"] == 0
        assert self.app.state.service.num_questions == 0


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine(kv_cache_bytes=64 << 20) as engine:
        yield engine


@pytest.fixture(scope="session")
def serve(engine: Engine) -> Iterator[Callable[..., Served]]:
    """Start a server with some settings; all are stopped at the end."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**options: Any) -> Served:
        settings = ServerSettings(**{"model_name": MODEL, **options})
        app = create_app(AsyncEngine(engine), settings)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Served(engine=engine, settings=settings, port=port, app=app)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def shared_server(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def served(shared_server: Served) -> Iterator[Served]:
    """The server that tests share; afterwards it must be idle."""
    yield shared_server
    shared_server.assert_idle()


@pytest.fixture(scope="session")
def scene_path() -> Path:
    return SCENE


@pytest.fixture
def slow_engine(served, monkeypatch) -> None:
    """Decoding takes seconds: the bundled model is done before a client has looked."""
    runner = served.engine._loop._runner
    decode = runner.decode

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return decode(*arguments)

    monkeypatch.setattr(runner, "decode", slow)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of these tests' own, started once."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with cluster(None):
        yield
