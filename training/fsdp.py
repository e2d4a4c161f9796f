"""A model folder to a trainable objective: plain on one CPU process, sharded by FSDP2 otherwise.

The units are the text self-attention layers, the text cross-attention layers and the vision layers;
the root holds the rest. Parameters are float32; on CUDA their products may be bfloat16.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from stagebeam.engine.errors import CheckpointError, InvalidInputError
from stagebeam.training.attention import SHORT_ROWS
from stagebeam.training.config import TrainConfig
from stagebeam.training.objective import SFTObjective
from stagebeam.training.world import World

logger = logging.getLogger(__name__)


def read_model_config(model_dir: str | os.PathLike[str]) -> Any:
    """The config of an HF folder; refuses what is not Mllama or Llama."""
    if not (Path(model_dir) / "config.json").is_file():
        raise CheckpointError(f"{os.fspath(model_dir)} is no model folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the model folder {os.fspath(model_dir)}: {error}"
        ) from error
    if config.model_type not in ("mllama", "llama"):
        raise CheckpointError(
            f"cannot train a {config.model_type!r} model: expected an HF folder of mllama or llama"
        )
    return config


def build_objective(
    model_dir: str | os.PathLike[str], config: TrainConfig, world: World
) -> SFTObjective:
    """Load an HF Mllama or Llama folder in float32, ready to train on the world's device."""
    hf_config = read_model_config(model_dir)
    auto = AutoModelForImageTextToText if hf_config.model_type == "mllama" else AutoModelForCausalLM
    # Tied weights would come untied when a model is built on the meta device.
    is_tied = hf_config.get_text_config().tie_word_embeddings
    loads_here = not world.is_sharded or world.is_first or is_tied
    is_autocast = config.precision == "autocast"
    if is_autocast and world.device.type != "cpu":
        raise InvalidInputError('precision "autocast" is for CPUs; a GPU takes "bfloat16"')
    attention = SHORT_ROWS if is_autocast else "sdpa"
    source = _load(auto, model_dir, attention) if loads_here else None
    if not world.is_sharded or is_tied:
        assert source is not None
        model = source.to(world.device)
    else:
        with torch.device("meta"):
            model = auto.from_config(hf_config, dtype=torch.float32, attn_implementation=attention)
    model.train()
    objective = SFTObjective(model, autocast=is_autocast)
    if config.activation_checkpointing:
        for layer in units(objective):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    if world.is_sharded:
        _shard(objective, config, world)
        if not is_tied:
            _fill_from_first(model, source, world)
    return objective


def units(objective: SFTObjective) -> list[nn.Module]:
    """The modules that are sharded and checkpointed one by one."""
    return [*objective.vision_layers(), *objective.text_layers()]


def _load(auto: Any, model_dir: str | os.PathLike[str], attention: str) -> Any:
    try:
        model, info = auto.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
        )
    except OSError as error:
        raise CheckpointError(
            f"cannot load weights from {os.fspath(model_dir)}: {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{os.fspath(model_dir)} lacks {len(missing)} tensors, the first is {missing[0]}"
        )
    return model


def _shard(objective: SFTObjective, config: TrainConfig, world: World) -> None:
    mesh = init_device_mesh(world.device.type, (world.size,))
    is_half = config.precision == "bfloat16" or (
        config.precision == "auto" and world.device.type == "cuda"
    )
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_half else None,
        reduce_dtype=torch.float32 if is_half else None,
    )
    for module in [*units(objective), objective]:
        fully_shard(module, mesh=mesh, mp_policy=policy)


def _fill_from_first(model: Any, source: Any, world: World) -> None:
    """Give the sharded, still empty `model` rank 0's weights, one tensor at a time."""
    model.to_empty(device=world.device)
    loaded = source.state_dict() if source is not None else {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor), f"{name} is not sharded"
            full = _broadcast(loaded.pop(name, None), parameter, world)
            shard = distribute_tensor(
                full, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
            parameter.to_local().copy_(shard.to_local())
        # Buffers such as the rotary frequencies are computed at construction, not stored.
        computed = dict(source.named_buffers()) if source is not None else {}
        for name, buffer in model.named_buffers():
            buffer.copy_(_broadcast(computed.get(name), buffer, world))


def _broadcast(value: torch.Tensor | None, like: torch.Tensor, world: World) -> torch.Tensor:
    if value is None:
        full = torch.empty(like.shape, dtype=like.dtype, device=world.device)
    else:
        full = value.detach().to(device=world.device, dtype=like.dtype).contiguous()
    dist.broadcast(full, src=0)
    return full
