"""The race's parts that need no other engine: decode, trunk, products, prefill, memory, instructions.

Times are step times of greedy decoding after a prompt of random tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch

from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.speed import bundled_race
from stagebeam.benchmarks.speed.instructions import instructions
from stagebeam.benchmarks.speed.load_memory import load_memory
from stagebeam.benchmarks.speed.native_run import NativeRun
from stagebeam.benchmarks.speed.native_setting import (
    Part,
    Race,
    Record,
    Round,
    in_turns,
    turned,
)
from stagebeam.benchmarks.speed.native_summary import (
    OURS,
    best_summary,
    decode_summary,
    only_summary,
    rates_summary,
    seconds_summary,
)
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT

BRANCHES = (1, 4, 8)
TRUNK_TOKENS, TRUNK_BRANCHES, TRUNK_STEPS = 1024, 8, 16
BUNDLED_BATCH, BUNDLED_PROMPT = 4, 256
_PREFILL_TAIL = 16


@contextmanager
def decode(race: Race) -> Iterator[Round]:
    """Steps of 1, 4 and 8 branches of one prompt, in every format, against the floor."""
    runs, settings = race.native(), race.settings
    cases = [(name, branches) for name in runs for branches in BRANCHES]

    def measure(name: str, branches: int) -> Record:
        run = runs[name]
        run.prefill(race.prompts(1), branches, settings.tokens)
        # Bandwidth and cores change from second to second here: they are measured beside.
        before = race.bandwidth()
        steps = [run.step() for _ in range(settings.tokens)]
        bandwidth = (before + race.bandwidth()) / 2
        length = settings.prompt + settings.tokens // 2
        return {
            "format": name,
            "branches": branches,
            "step_seconds": median(steps),
            "bandwidth": bandwidth,
            "gemm_rate": race.gemm_rate(name),
            "multiply_adds": run.multiply_adds(branches, length),
            "weight_bytes": run.decode_bytes,
            "kv_bytes": run.kv_bytes,
            "least_kv_bytes": run.least_kv_bytes(settings.prompt, branches, 1, settings.tokens),
        }

    yield lambda number: [measure(*case) for case in turned(cases, number)]


@contextmanager
def trunk(race: Race) -> Iterator[Round]:
    """The cache bytes that attention reads with 8 branches on a shared trunk of 1,024 tokens."""
    name = race.settings.formats[-1]
    run = race.native([name])[name]

    def measure(number: int) -> list[Record]:
        run.prefill(race.prompts(1, TRUNK_TOKENS), TRUNK_BRANCHES, TRUNK_STEPS)
        for _ in range(TRUNK_STEPS):
            run.step()
        least = run.least_kv_bytes(TRUNK_TOKENS, TRUNK_BRANCHES, 1, TRUNK_STEPS)
        return [
            {"kv_bytes": run.kv_bytes, "least_kv_bytes": least, "ratio": run.kv_bytes / least},
        ]

    yield measure


@contextmanager
def gemm(race: Race) -> Iterator[Round]:
    """Multiply-adds a second of each format's product."""
    yield partial(in_turns, {name: partial(race.gemm_rate, name) for name in race.settings.formats})


@contextmanager
def prefill(race: Race) -> Iterator[Round]:
    """One prompt to its first token, ours in every format and HF in float32."""
    model = HFModel(race.folder).model

    def hf() -> float:
        ids = torch.tensor(race.prompts(1))
        began = time.perf_counter()
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - began

    def ours(run: NativeRun) -> float:
        return run.prefill(race.prompts(1), 1, _PREFILL_TAIL)

    calls: dict[str, Callable[[], float]] = {"HF float32": hf}
    calls |= {OURS + name: partial(ours, run) for name, run in race.native().items()}
    for call in calls.values():
        call()  # warm
    yield partial(in_turns, calls)


@contextmanager
def bundled(race: Race) -> Iterator[Round]:
    """Tokens a second of the bundled checkpoint with an image, 4 rows, beside HF `generate`."""
    model = HFModel(BUNDLED_CHECKPOINT)
    engines = {
        name: bundled_race.open_engine(name, race.settings.threads)
        for name in race.settings.formats
    }
    shape = BUNDLED_BATCH, BUNDLED_PROMPT, race.settings.tokens
    calls: dict[str, Callable[[], float]] = {
        "HF float32": partial(bundled_race.hf_rate, model, *shape)
    }
    calls |= {
        OURS + name: partial(bundled_race.our_rate, engine, *shape)
        for name, engine in engines.items()
    }
    try:
        for call in calls.values():
            call()  # warm
        yield partial(in_turns, calls)
    finally:
        for engine in engines.values():
            engine.close()


@contextmanager
def memory(race: Race) -> Iterator[Round]:
    """Anonymous memory at load, in every format."""
    yield lambda number: [
        {"formats": {name: load_memory(race.folder, name) for name in race.settings.formats}}
    ]


@contextmanager
def counted(race: Race) -> Iterator[Round]:
    """Instructions of the kernels."""
    yield lambda number: [instructions()]


PARTS = {
    "instructions": Part(open=counted, summarise=only_summary, seconds=10, is_once=True),
    "memory": Part(open=memory, summarise=only_summary, seconds=30, is_once=True),
    "trunk": Part(open=trunk, summarise=only_summary, seconds=10, is_once=True),
    "gemm": Part(open=gemm, summarise=best_summary, seconds=10),
    "prefill": Part(open=prefill, summarise=seconds_summary, seconds=15),
    "decode": Part(open=decode, summarise=decode_summary, seconds=50),
    "bundled": Part(open=bundled, summarise=rates_summary, seconds=15),
}
