"""The bundled checkpoint, loaded once, and its example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from stagebeam import Engine
from stagebeam.engine.checkpoints import ASSETS

CACHE_BYTES = 64 << 20


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine(kv_cache_bytes=CACHE_BYTES) as loaded:
        yield loaded


@pytest.fixture
def idle(engine: Engine) -> Iterator[Engine]:
    """The engine, and afterwards proof that the test left nothing behind in it."""
    yield engine
    stats = engine.stats()
    assert stats["num_free"] == stats["num_blocks"]
    assert stats["num_reserved"] == stats["num_sequences"] == stats["num_images_in_use"] == 0


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    with Image.open(ASSETS / "examples" / "scene.png") as image:
        return image.convert("RGB")


@pytest.fixture(scope="session")
def question() -> str:
    return (Path(ASSETS) / "examples" / "scene.txt").read_text(encoding="utf-8").strip()
