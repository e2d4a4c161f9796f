"""Fixtures of the engine's tests: tiny checkpoints, engines on them, and one image.

Every engine of `make_engine` is checked after its test: nothing may be held.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stagebeam.engine.checkpoints import ASSETS
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams

HERE = Path(__file__).parent
BUNDLED_CACHE_BYTES = 64 << 20


def _load(name: str):
    """A module beside this file, importable by its name (tests are not a package)."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tiny_checkpoint = _load("tiny_checkpoint")
probe = _load("probe")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models lose more to the hand-over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> tiny_checkpoint.TinyCheckpoint:
    return tiny_checkpoint.make_mllama(tmp_path_factory.mktemp("tiny-mllama"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tiny_checkpoint.TinyCheckpoint:
    return tiny_checkpoint.make_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def make_engine(mllama: tiny_checkpoint.TinyCheckpoint) -> Iterator[Callable[..., Engine]]:
    """Open an engine, in float32 unless told; `num_blocks` sizes its cache. After the test nothing
    may be held."""
    engines: list[Engine] = []

    def make(checkpoint=mllama, num_blocks: int = 512, dtype: str = "float32", **options) -> Engine:
        heads, head_dim, layers = 2, tiny_checkpoint.HIDDEN // 4, 2
        itemsize = 4 if dtype == "float32" else 2
        cache_bytes = num_blocks * 16 * 2 * layers * heads * head_dim * itemsize
        engine = Engine(checkpoint.folder, dtype=dtype, kv_cache_bytes=cache_bytes, **options)
        assert engine.memory.num_blocks == num_blocks
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        # A caller hears of the end before the loop's thread has gone back to wait.
        engine.close()
        probe.assert_nothing_held(engine)


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def image() -> Image.Image:
    """One tile."""
    return noise(30, 30)


@pytest.fixture(scope="session")
def wide_image() -> Image.Image:
    """Two tiles."""
    return noise(70, 30)


@pytest.fixture(scope="session")
def free_sampling() -> Callable[..., SamplingParams]:
    """Unfiltered sampling: every token has its chance."""

    def make(max_tokens: int = 32, **changes) -> SamplingParams:
        options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **changes}
        return SamplingParams(max_tokens=max_tokens, **options)

    return make


@pytest.fixture(scope="session")
def bundled() -> Iterator[Engine]:
    """The bundled checkpoint, loaded once."""
    with Engine(kv_cache_bytes=BUNDLED_CACHE_BYTES) as loaded:
        yield loaded


@pytest.fixture
def idle(bundled: Engine) -> Iterator[Engine]:
    """The bundled engine, and afterwards proof that the test left nothing behind in it."""
    yield bundled
    stats = bundled.stats()
    assert stats["num_free"] == stats["num_blocks"]
    assert stats["num_reserved"] == stats["num_sequences"] == stats["num_images_in_use"] == 0


@pytest.fixture(scope="session")
def scene() -> Image.Image:
    with Image.open(ASSETS / "examples" / "scene.png") as picture:
        return picture.convert("RGB")


@pytest.fixture(scope="session")
def question() -> str:
    return (ASSETS / "examples" / "scene.txt").read_text(encoding="utf-8").strip()
