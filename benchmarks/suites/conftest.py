"""What the suites share: one thread of PyTorch's, so that two cores suffice for a steady time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from stagebeam.benchmarks.suites.timing import Time
from stagebeam.engine.engine import Engine


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The bundled checkpoint in the backend's default."""
    with Engine(kv_cache_bytes=64 << 20) as loaded:
        yield loaded


@pytest.fixture
def timed(benchmark: Any) -> Time:
    """Call something over and over for half a second and record how long it takes."""

    def run(function: Callable[..., Any], *arguments: Any, rounds: int = 0) -> None:
        if rounds:
            benchmark.pedantic(function, arguments, rounds=rounds, warmup_rounds=1)
        else:
            benchmark(function, *arguments)

    return run
