"""The published checkpoints' sizes, and a model of them on the meta device that runs Triton's wrappers.

Nothing is downloaded: a kernel is compiled for shapes, not for weights.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration

from stagebeam.engine.models.loader import Model, build_model
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.kernels import registry
from stagebeam.kernels.registry import Ops

_90B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 100,
    "num_attention_heads": 64,
    "cross_attention_layers": list(range(3, 100, 5)),
}
_TEXT: dict[str, dict[str, object]] = {"11B": {}, "90B": _90B}  # beside HF's defaults


@cache
def spec_of(size: str) -> ModelSpec:
    """The sizes of Llama 3.2 Vision, "11B" or "90B"."""
    return ModelSpec.from_hf(_config(size), {})


def meta_model(size: str, dtype: torch.dtype, ops: Ops) -> Model:
    """A model without memory: its passes launch nothing and note down what they would."""
    return build_model(spec_of(size), _tensors(size), device="meta", dtype=dtype, backend_ops=ops)


def triton_ops() -> Ops:
    """Every op's Triton form, whether or not it could run here."""
    modules = {op: import_module(f"stagebeam.kernels.{op}.triton_kernel") for op in registry.OPS}
    return Ops(**{op: getattr(module, op) for op, module in modules.items()})


def _config(size: str) -> MllamaConfig:
    # 560 pixels is what the published checkpoints have; transformers' default is not.
    return MllamaConfig(text_config=_TEXT[size], vision_config={"image_size": 560})


@cache
def _tensors(size: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        tensors: dict[str, Tensor] = MllamaForConditionalGeneration(_config(size)).state_dict()
    return tensors
