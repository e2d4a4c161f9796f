"""The race's parts beside another engine: tokens a second, distinct prompts, at equal bits of weight.

Each part is one engine in one format at one batch, so that no engine's idle threads stand beside
another's and a part takes a minute or two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from transformers import GenerationConfig

from stagebeam.benchmarks.baselines.hf_model import HFModel, Stamps
from stagebeam.benchmarks.baselines.peers import PeerRun, peers
from stagebeam.benchmarks.speed.native_run import NativeRun
from stagebeam.benchmarks.speed.native_setting import (
    FORMATS,
    WARM_TOKENS,
    Part,
    Race,
    Round,
    in_turns,
)
from stagebeam.benchmarks.speed.native_summary import OURS, rates_summary

BATCHES = (1, 4)
Generate = Callable[[Sequence[Sequence[int]], int], PeerRun]
# Ours that run beside each: those of as many bits a weight; all beside HF, the common measure.
EQUAL_BITS: dict[str, tuple[str, ...]] = {
    "hf": FORMATS,
    "llamacpp-f32": ("float32",),
    "llamacpp-bf16": ("bfloat16",),
    "llamacpp-f16": ("bfloat16",),
    "llamacpp-q8_0": ("int8",),
    "llamacpp-q4_1": ("int4",),
    "openvino-float32": ("float32",),
    "openvino-f16": ("bfloat16",),
    "openvino-q8_0": ("int8",),
    "openvino-q4_1": ("int4",),
    "ctranslate2-float32": ("float32",),
    "ctranslate2-int8": ("int8",),
}


@contextmanager
def beside(engine: str, batch: int, race: Race) -> Iterator[Round]:
    """The engine and ours in turns."""
    tokens = race.settings.tokens
    others = _hf(race) if engine == "hf" else _peer(engine, batch, race)
    runs = race.native([name for name in EQUAL_BITS[engine] if name in race.settings.formats])
    rivals: dict[str, Generate] = {
        **others,
        **{OURS + n: partial(_native, r) for n, r in runs.items()},
    }
    for generate in rivals.values():
        generate(race.warm_prompts(batch), WARM_TOKENS)

    def rate(generate: Generate) -> float:
        return generate(race.prompts(batch), tokens).tokens_per_second

    yield partial(in_turns, {name: partial(rate, rival) for name, rival in rivals.items()})


def _peer(engine: str, batch: int, race: Race) -> dict[str, Generate]:
    peer = peers(race.settings.threads, batch)[engine]()
    return {peer.name: peer.generate}


def _native(run: NativeRun, prompts: Sequence[Sequence[int]], num_tokens: int) -> PeerRun:
    prefill = run.prefill(prompts, 1, num_tokens)
    began = time.perf_counter()
    for _ in range(num_tokens - 1):
        run.step()
    return PeerRun(
        prefill_seconds=prefill,
        decode_seconds=time.perf_counter() - began,
        decode_tokens=len(prompts) * (num_tokens - 1),
    )


def _hf(race: Race) -> dict[str, Generate]:
    model = HFModel(race.folder).model

    def generate(prompts: Sequence[Sequence[int]], num_tokens: int) -> PeerRun:
        stamps, ids = Stamps(), torch.tensor(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(max_new_tokens=num_tokens, pad_token_id=0),
                stopping_criteria=[stamps],
            )
        return PeerRun(
            prefill_seconds=stamps.times[0] - began,
            decode_seconds=stamps.times[-1] - stamps.times[0],
            decode_tokens=len(prompts) * (num_tokens - 1),
        )

    return {"HF float32": generate}


def name_of(engine: str, batch: int) -> str:
    """The part's."""
    return f"{engine}-batch{batch}"


_SECONDS = {1: 15, 4: 30}  # of loading and a round, about
PARTS = {
    name_of(engine, batch): Part(
        open=partial(beside, engine, batch),
        summarise=rates_summary,
        seconds=_SECONDS[batch] * (2 if engine == "hf" else 1),
    )
    for engine in EQUAL_BITS
    for batch in BATCHES
}
