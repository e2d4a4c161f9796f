"""What every part of the native race shares: prompts, threads, the machine's rates of the moment.

A part is opened once (its models are loaded) and then gives the records of one round after another, its
contenders in turns; what a part's records say together is `native_summary`'s.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from stagebeam.benchmarks.midsize import smollm2_folder
from stagebeam.benchmarks.speed.native_run import NativeRun
from stagebeam.bindings import _cpu

FORMATS = ("float32", "bfloat16", "int8", "int4")
_PAUSE = 0.25  # seconds in which other engines' threads stop spinning
_BANDWIDTH_BYTES = 256 << 20
_WARM_PROMPT, WARM_TOKENS = 32, 8

Record = dict[str, Any]
Round = Callable[[int], list[Record]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What two runs must share for their records to be put together."""

    prompt: int = 512
    tokens: int = 128
    rounds: int = 5
    threads: int = 2
    seed: int = 0
    formats: tuple[str, ...] = FORMATS


class Race:
    """The settings at work in one part."""

    def __init__(self, settings: Settings, part: str) -> None:
        self.settings = settings
        self.folder: Path = smollm2_folder()
        self.pool = _cpu.ThreadPool(settings.threads)
        self._part = crc32(part.encode())
        torch.set_num_threads(settings.threads)
        self.begin_round(0)

    def begin_round(self, number: int) -> None:
        """New prompts: an engine may keep those of another part or round."""
        self._rng = np.random.default_rng([self.settings.seed, self._part, number])

    def prompts(self, count: int, length: int | None = None) -> list[list[int]]:
        return self._rng.integers(100, 40_000, (count, length or self.settings.prompt)).tolist()

    def warm_prompts(self, count: int) -> list[list[int]]:
        return self.prompts(count, _WARM_PROMPT)

    def bandwidth(self) -> float:
        """Bytes a second that the threads read together."""
        return _cpu.read_bandwidth(self.pool, _BANDWIDTH_BYTES, 3) * 1e9

    def gemm_rate(self, name: str) -> float:
        """Multiply-adds a second of a format's product, weights in the cache, 128 rows."""
        x = np.random.default_rng(0).standard_normal((128, 576), dtype=np.float32)
        matrix = _cpu.PackedMatrix(1536, 576, name.replace("bfloat16", "bf16"))
        matrix.pack_rows(0, np.ones((1536, 576), np.float32))
        best = 0.0
        for _ in range(10):
            began = time.perf_counter()
            _cpu.linear(self.pool, matrix, x)
            best = max(best, 128 * 1536 * 576 / (time.perf_counter() - began))
        return best

    def native(self, formats: Sequence[str] | None = None) -> dict[str, NativeRun]:
        """The native model in each format."""
        threads = self.settings.threads
        names = self.settings.formats if formats is None else formats
        return {name: NativeRun(self.folder, name, threads) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One measurement.

    open:      loads what it needs and gives what measures a round
    summarise: what all rounds' records say together
    seconds:   of loading and a round on two quiet cores, about
    is_once:   whether one round tells all
    """

    open: Callable[[Race], AbstractContextManager[Round]]
    summarise: Callable[[Sequence[Record]], dict[str, Any]]
    seconds: float
    is_once: bool = False


def turned(items: Sequence[Any], number: int) -> list[Any]:
    """The items, another one first in every round."""
    turn = number % len(items)
    return [*items[turn:], *items[:turn]]


def in_turns(calls: dict[str, Callable[[], float]], number: int) -> list[Record]:
    """Each contender's value in this round."""
    records = []
    for name in turned(list(calls), number):
        gc.collect()
        time.sleep(_PAUSE)
        records.append({"contender": name, "value": calls[name]()})
    return records
