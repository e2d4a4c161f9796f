"""Other engines that run here on the same weights, for plain greedy decoding: llama.cpp, OpenVINO, CTranslate2.

Installed by the extra `peers`. Each reads SmolLM2-135M in formats of its own, made from the same
weights: GGUF blocks of 4 to 32 bits (llama.cpp; OpenVINO, which knows no BF16 and F32 ones), float32 and
int8 (CTranslate2, which offers no 16-bit type on this processor). Prompts of different calls must
differ: some of these engines keep what they have seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stagebeam.benchmarks.baselines.gguf_weights import gguf_of
from stagebeam.benchmarks.midsize import cache_folder, smollm2_folder

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

    def __init__(self, weights: str, num_threads: int, max_prompts: int) -> None:
        import xllamacpp

        self.name = f"llama.cpp {weights}"
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf_of(weights))
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
    """OpenVINO GenAI on a GGUF; it computes in bf16 where the processor can, else in float32.

    is_float32: compute in float32, to which 16-bit weights are unpacked at load
    """

    def __init__(self, weights: str, num_threads: int, is_float32: bool = False) -> None:
        import openvino_genai

        self.name = f"OpenVINO {'float32' if is_float32 else weights}"
        self._genai: Any = openvino_genai
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": num_threads}
        if is_float32:
            options["INFERENCE_PRECISION_HINT"] = "f32"
        self._pipeline = openvino_genai.LLMPipeline(str(gguf_of(weights)), "CPU", **options)

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
    makers: dict[str, Callable[[], Peer]] = {
        f"llamacpp-{weights.lower()}": partial(LlamaCpp, weights, num_threads, max_prompts)
        for weights in ("F32", "BF16", "F16", "Q8_0", "Q4_1")
    }
    makers["openvino-float32"] = partial(OpenVino, "F16", num_threads, is_float32=True)
    for weights in ("F16", "Q8_0", "Q4_1"):
        makers[f"openvino-{weights.lower()}"] = partial(OpenVino, weights, num_threads)
    for name, compute_type in (("float32", "float32"), ("int8", "int8_float32")):
        makers[f"ctranslate2-{name}"] = partial(CTranslate2, num_threads, compute_type)
    return makers
