"""The C interface through ctypes, in the test's own process: a host that runs Python already."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stagebeam.bindings.locations import C_LIBRARY

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE_BYTES = 4 << 20


def _load(name: str, path: Path) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


tiny_checkpoint = _load("tiny_checkpoint", HERE.parent / "engine" / "tiny_checkpoint.py")
c_structs = _load("c_structs", ROOT / "examples" / "ctypes" / "answer.py")


class Client:
    """libstagebeam and one engine of it."""

    def __init__(self, library: ctypes.CDLL, folder: Path) -> None:
        self.library = library
        self.engine = self.create(path=str(folder).encode(), kv_cache_bytes=CACHE_BYTES)

    def error(self) -> str:
        return self.library.stagebeam_last_error().decode()

    def create(self, **params: Any) -> int:
        handle = ctypes.c_uint64()
        status = self.library.stagebeam_engine_create(c_structs.EngineParams(**params), handle)
        assert status == 0, self.error()
        return handle.value

    def try_submit(self, text: str, image: Any = None, **params: Any) -> tuple[int, int]:
        """(status, handle)"""
        handle = ctypes.c_uint64()
        status = self.library.stagebeam_submit(
            params.pop("engine", self.engine),
            text.encode(),
            image,
            c_structs.question_params(**params) if params else None,
            handle,
        )
        return status, handle.value

    def submit(self, text: str, image: Any = None, **params: Any) -> int:
        status, handle = self.try_submit(text, image, **params)
        assert status == 0, self.error()
        return handle

    def events(self, question: int) -> Iterator[Any]:
        """Every event up to the last; the struct is written anew for each."""
        event = c_structs.Event()
        while (status := self.library.stagebeam_question_next(question, 60_000, event)) == 0:
            yield event
        assert self.library.stagebeam_status_name(status) == b"end", self.error()

    def documents(self, question: int) -> list[dict[str, Any]]:
        """Every event as its JSON; the question is destroyed."""
        documents = [json.loads(event.json) for event in self.events(question)]
        assert self.library.stagebeam_question_destroy(question) == 0
        return documents

    def stats(self) -> Any:
        stats = c_structs.Stats()
        assert self.library.stagebeam_engine_stats(self.engine, stats) == 0
        return stats


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    if not C_LIBRARY.exists():
        pytest.skip("libstagebeam is not built here: the C interface is for Linux")
    library = c_structs.load(str(C_LIBRARY))
    library.stagebeam_status_name.argtypes = [ctypes.c_int32]
    return library


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights, stages and images."""
    return tiny_checkpoint.make_mllama(tmp_path_factory.mktemp("tiny-mllama")).folder


@pytest.fixture(scope="session")
def _client(library: ctypes.CDLL, tiny_folder: Path) -> Iterator[Client]:
    client = Client(library, tiny_folder)
    yield client
    assert client.library.stagebeam_engine_destroy(client.engine) == 0


@pytest.fixture
def client(_client: Client) -> Iterator[Client]:
    """One engine for all tests; each must leave nothing in it."""
    yield _client
    stats = _client.stats()
    assert stats.num_questions == stats.num_running == 0
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_reserved_blocks == stats.num_sequences == stats.num_images_in_use == 0


@pytest.fixture(scope="session")
def scene_path() -> Path:
    return ROOT / "assets" / "examples" / "scene.png"


@pytest.fixture(scope="session")
def scene(scene_path: Path) -> Image.Image:
    with Image.open(scene_path) as picture:
        return picture.convert("RGB")
