"""A checkpoint in HF transformers, with what both baselines need of it: inputs, calls and clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    MllamaForConditionalGeneration,
    StoppingCriteria,
)

from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.models.processor import PreparedImage, load_processor
from stagebeam.engine.params import SamplingParams


class HFModel:
    """The HF model of a folder; its tokenizer and image processor are the engine's."""

    def __init__(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        self.path = Path(folder)
        self.spec = read_spec(folder)
        self.processor = load_processor(folder, self.spec)
        load = MllamaForConditionalGeneration if self.spec.vision else AutoModelForCausalLM
        self.model: Any = load.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        self.model.generation_config = GenerationConfig()  # every call says all it wants
        self.encode_clock = _EncodeClock(self.model)

    def image_inputs(self, image: PreparedImage) -> dict[str, Tensor]:
        """The image's arguments of a forward pass, batch 1."""
        return {
            "pixel_values": image.pixel_values[None, None],
            "aspect_ratio_ids": torch.tensor([[image.aspect_ratio_id]]),
            "aspect_ratio_mask": image.aspect_ratio_mask[None, None],
        }

    def cross_mask(self, image: PreparedImage, positions: Sequence[int], length: int) -> Tensor:
        """Which tiles each token sees, [rows, length, 1, max_num_tiles]: from its row's image on."""
        mask = torch.zeros(len(positions), length, 1, self.spec.max_num_tiles, dtype=torch.int64)
        for row, position in enumerate(positions):
            mask[row, position:, :, : image.num_tiles] = 1
        return mask

    def generation_config(self, sampling: SamplingParams, num_tokens: int) -> GenerationConfig:
        """`sampling` in HF's words, for at most `num_tokens` new tokens."""
        eos = list(self.spec.eos_ids)
        filters: dict[str, Any] = {}
        if sampling.temperature > 0:
            filters = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": max(sampling.top_k, 0),
                "min_p": sampling.min_p or None,
            }
        return GenerationConfig(
            max_new_tokens=num_tokens,
            eos_token_id=None if sampling.ignore_eos else eos or None,
            pad_token_id=eos[0] if eos else 0,
            return_dict_in_generate=True,
            **filters,
        )


class Stamps(StoppingCriteria):
    """Never stops; keeps when each token came."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    @property
    def steps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [b - a for a, b in zip(self.times, self.times[1:])]


class _EncodeClock:
    """Seconds spent and images seen in the vision tower and its projector."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self.images = 0
        self._began = 0.0
        inner: Any = getattr(model, "model", None)
        tower = getattr(inner, "vision_model", None)
        if tower is not None:
            tower.register_forward_pre_hook(self._start, with_kwargs=True)
            inner.multi_modal_projector.register_forward_hook(self._stop)

    def take(self) -> tuple[float, int]:
        """(seconds, images) since the last call."""
        taken = self.seconds, self.images
        self.seconds, self.images = 0.0, 0
        return taken

    def _start(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._began = time.perf_counter()
        self.images += kwargs["pixel_values"].shape[0]

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def cache_bytes(caches: Iterable[DynamicCache]) -> int:
    """Bytes of the keys and values in these caches; a tensor that several share counts once."""
    storages = {}
    for cache in caches:
        for layer in cache.layers:
            if layer.is_initialized:
                for tensor in (layer.keys, layer.values):
                    storages[tensor.untyped_storage().data_ptr()] = (
                        tensor.untyped_storage().nbytes()
                    )
    return sum(storages.values())
