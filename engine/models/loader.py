"""From a HF folder to a model: read the configs, pick the architecture, take the weights.

`Model` is what the engine runs. Every fault of the folder is a `CheckpointError` that names the
file or the tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaConfig, MllamaConfig

from stagebeam.engine.errors import CheckpointError
from stagebeam.engine.models.forward import ForwardBatch, KVLayers
from stagebeam.engine.models.llama import Llama
from stagebeam.engine.models.mllama import Mllama
from stagebeam.engine.models.native import NativeModel
from stagebeam.engine.models.ranks import ONE_RANK, MeshRanks, Ranks
from stagebeam.engine.models.safetensors_files import SafetensorsFiles
from stagebeam.engine.models.sharding import RankTensors, rank_spec
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.weights import Weights, canonical_name
from stagebeam.kernels.registry import Ops

_CONFIGS = {"mllama": MllamaConfig, "llama": LlamaConfig}
_MODELS: dict[str, type[Mllama] | type[Llama]] = {"mllama": Mllama, "llama": Llama}


class Model(Protocol):
    """A loaded model: weights and forward passes, no caches."""

    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        """Where its inputs are."""

    def forward(self, batch: ForwardBatch, kv: KVLayers, cross_kv: KVLayers) -> Tensor:
        """Run one pass; returns [num_outputs, hidden_size] after the final norm.

        kv:       a self-attention layer's (k_cache, v_cache) each, written at `slot_mapping`
        cross_kv: a cross-attention layer's (k_slots, v_slots) each, read; empty without images
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden_size] after the final norm -> float32 [R, vocab_size]"""

    def verdict_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits of ids [R, 2] at hidden states [R, hidden_size], float32 [R, 2]"""

    def encode_image(
        self, pixel_values: Tensor, aspect_ratio_id: int, aspect_ratio_mask: Tensor
    ) -> KVLayers:
        """Each cross layer's (k, v) of one image, [vision_tokens, num_kv_heads, head_dim].

        pixel_values:      [max_num_tiles, 3, image_size, image_size] float32, valid tiles first
        aspect_ratio_mask: [max_num_tiles], 1 for a valid tile
        Raises ImageError for a text-only model.
        """


def load_model(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    backend_ops: Ops,
    mesh: DeviceMesh | None = None,
) -> Model:
    """Load a HF folder's weights onto `device` as `dtype`; with a mesh, this rank's part of them.

    A part's `spec` has a rank's sizes: fewer heads and a narrower MLP. InvalidInputError where the
    ranks cannot share them evenly.
    """
    folder = Path(path)
    spec, files = read_spec(folder), SafetensorsFiles(folder)
    if mesh is None:
        return build_model(spec, files, device=device, dtype=dtype, backend_ops=backend_ops)
    has_own_head = any(canonical_name(name) == "lm_head.weight" for name in files)
    head_rows = spec.vocab_size if has_own_head else spec.num_embeddings
    return build_model(
        rank_spec(spec, mesh.size()),
        RankTensors(files, mesh),
        device=device,
        dtype=dtype,
        backend_ops=backend_ops,
        ranks=MeshRanks(mesh, spec.num_embeddings, head_rows),
    )


def load_native_model(
    path: str | os.PathLike[str],
    *,
    weight_format: str,
    backend_ops: Ops,
    num_threads: int | None = None,
) -> NativeModel:
    """Pack a HF folder's weights for the step program, tensor by tensor from the mapped files."""
    folder = Path(path)
    return build_native_model(
        read_spec(folder),
        SafetensorsFiles(folder),
        weight_format=weight_format,
        backend_ops=backend_ops,
        num_threads=num_threads,
    )


def build_native_model(
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    *,
    weight_format: str,
    backend_ops: Ops,
    num_threads: int | None = None,
) -> NativeModel:
    """A native program from tensors by HF names in either key layout; for a CPU."""
    weights = Weights(tensors, device=torch.device("cpu"), dtype=torch.float32)
    spec = replace(spec, has_tied_head=spec.has_tied_head and "lm_head.weight" not in weights)
    model = NativeModel(
        spec, weights, backend_ops, weight_format=weight_format, num_threads=num_threads
    )
    weights.check_all_taken()
    return model


def build_model(
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    backend_ops: Ops,
    ranks: Ranks = ONE_RANK,
) -> Model:
    """A model from tensors by HF names in either key layout."""
    weights = Weights(tensors, device=torch.device(device), dtype=dtype, ranks=ranks)
    # A config may ask for a tied head beside a checkpoint that has a head of its own: HF uses it.
    spec = replace(spec, has_tied_head=spec.has_tied_head and "lm_head.weight" not in weights)
    model: Model = _MODELS[spec.architecture](spec, weights, backend_ops)
    weights.check_all_taken()
    return model


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The sizes and ids in a HF folder's config.json and generation_config.json."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"model folder {os.fspath(path)!r} does not exist; expected a HF folder with config.json"
        )
    data = read_json(folder / "config.json")
    if data is None:
        raise CheckpointError(f"{folder} has no config.json; expected a HF model folder")
    kind = data.get("model_type")
    if kind not in _CONFIGS:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {kind!r} is not supported, expected "
            "'mllama' (Llama 3.2 Vision, LLaVA-CoT) or 'llama' (Llama, TinyLlama, SmolLM2)"
        )
    if "quantization_config" in data:
        raise CheckpointError(
            f"{folder / 'config.json'}: quantized checkpoints are not supported; use one with "
            "float32, bfloat16 or float16 weights"
        )
    try:
        config = _CONFIGS[kind].from_dict(data)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    return ModelSpec.from_hf(config, read_json(folder / "generation_config.json") or {})


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file of the folder; None where there is no such file."""
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data
