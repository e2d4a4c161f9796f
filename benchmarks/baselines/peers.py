"""Other engines that run here on the same weights, for plain greedy decoding: llama.cpp, OpenVINO, CTranslate2.

Installed by the extra `peers`. Each reads SmolLM2-135M in a format of its own: the GGUF's Q4_1
blocks (llama.cpp, OpenVINO) or float32 and int8 made from the same weights (CTranslate2). Prompts of
different calls must differ: some of these engines keep what they have seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stagebeam.benchmarks.midsize import cache_folder, smollm2_folder
from stagebeam.benchmarks.smollm2 import gguf_path

_CONTEXT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRun:
    """One call: seconds until every prompt has a token, and tokens and seconds after that."""

    prefill_seconds: float
    decode_seconds: float
    decode_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds


class Peer(Protocol):
    """A loaded engine."""

    name: str

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> PeerRun:
        """`num_tokens` greedy tokens after each prompt, all prompts as one batch."""


class LlamaCpp:
    """llama.cpp's server loop in this process; a prompt is a slot of it."""

    name = "llama.cpp Q4_1"

    def __init__(self, num_threads: int, max_prompts: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf_path())
        params.n_ctx = _CONTEXT * max_prompts
        params.n_parallel = max_prompts
        params.cpuparams.n_threads = num_threads
        params.cpuparams_batch.n_threads = num_threads
        params.cache_prompt = False
        params.fit_params = False
        params.verbosity = 0
        self._server: Any = xllamacpp.Server(params)
        self._callers = ThreadPoolExecutor(max_prompts)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> PeerRun:
        began = time.perf_counter()
        stamps = list(self._callers.map(lambda ids: self._one(ids, num_tokens), prompts))
        first = max(times[0] for times in stamps)
        last = max(times[-1] for times in stamps)
        # The server may start prompts one after another: only what came after the last start counts.
        # A token that ends inside a character has no call of its own.
        after = sum(num_tokens - sum(t <= first for t in times) for times in stamps)
        return PeerRun(
            prefill_seconds=first - began, decode_seconds=last - first, decode_tokens=after
        )

    def _one(self, prompt: Sequence[int], num_tokens: int) -> list[float]:
        times: list[float] = []
        request = {
            "prompt": list(prompt),
            "n_predict": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        self._server.handle_completions(request, lambda _: times.append(time.perf_counter()))
        return times


class OpenVino:
    """OpenVINO GenAI on the GGUF."""

    name = "OpenVINO Q4_1"

    def __init__(self, num_threads: int) -> None:
        import openvino_genai

        self._genai: Any = openvino_genai
        self._pipeline = openvino_genai.LLMPipeline(
            str(gguf_path()), "CPU", INFERENCE_NUM_THREADS=num_threads
        )

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> PeerRun:
        import openvino

        config = self._genai.GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, ignore_eos=True, apply_chat_template=False
        )
        ids = np.array(prompts, np.int64)
        inputs = self._genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        began = time.perf_counter()
        result = self._pipeline.generate(inputs, config)
        seconds = time.perf_counter() - began
        first = result.perf_metrics.get_ttft().mean / 1000
        return PeerRun(
            prefill_seconds=first,
            decode_seconds=seconds - first,
            decode_tokens=len(prompts) * (num_tokens - 1),
        )


class CTranslate2:
    """CTranslate2 on weights converted from the HF folder; compute_type float32 or int8_float32."""

    def __init__(self, num_threads: int, compute_type: str) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        self.name = f"CTranslate2 {compute_type.split('_')[0]}"
        folder = cache_folder() / f"smollm2-135m-ctranslate2-{compute_type}"
        if not folder.exists():
            TransformersConverter(str(smollm2_folder())).convert(
                str(folder), quantization=compute_type
            )
        self._tokens: list[str] = json.loads(Path(folder / "vocabulary.json").read_text())
        self._generator: Any = ctranslate2.Generator(
            str(folder), intra_threads=num_threads, inter_threads=1, compute_type=compute_type
        )

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> PeerRun:
        stamps: list[float] = []

        def stamp(_: Any) -> bool:
            stamps.append(time.perf_counter())
            return False

        tokens = [[self._tokens[i] for i in prompt] for prompt in prompts]
        began = time.perf_counter()
        self._generator.generate_batch(
            tokens,
            max_length=num_tokens,
            min_length=num_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=stamp,
        )
        first = stamps[len(prompts) - 1]  # a call a prompt and step
        return PeerRun(
            prefill_seconds=first - began,
            decode_seconds=stamps[-1] - first,
            decode_tokens=len(stamps) - len(prompts),
        )


def peers(num_threads: int, max_prompts: int) -> dict[str, Callable[[], Peer]]:
    """How to load each peer, by its short name."""
    return {
        "llamacpp": lambda: LlamaCpp(num_threads, max_prompts),
        "openvino": lambda: OpenVino(num_threads),
        "ctranslate2-float32": lambda: CTranslate2(num_threads, "float32"),
        "ctranslate2-int8": lambda: CTranslate2(num_threads, "int8_float32"),
    }
