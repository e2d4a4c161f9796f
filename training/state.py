"""What a checkpoint must hold to continue bit for bit: weights, AdamW moments, generator states.

Maps them to named tensors, this rank's shards, and back; also onto another number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from stagebeam.engine.errors import CheckpointError
from stagebeam.training.checkpoint import Checkpoint, read_full
from stagebeam.training.world import World

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_CPU_GENERATOR = "generator/cpu"
_CUDA_GENERATOR = "generator/cuda"


def collect_state(
    objective: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> dict[str, Tensor]:
    """This rank's shard of everything that training changes, by name."""
    tensors: dict[str, Tensor] = {_CPU_GENERATOR: torch.get_rng_state()}
    if world.device.type == "cuda":
        tensors[_CUDA_GENERATOR] = torch.cuda.get_rng_state(world.device)
    for name, parameter in objective.named_parameters():
        tensors[f"weight/{name}"] = _local(parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = _local(value)
    return tensors


def restore_state(
    objective: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, world: World
) -> None:
    """Load `checkpoint` in place; the number of ranks may differ from when it was saved."""
    same_ranks = checkpoint.num_shards == world.size
    shard = checkpoint.shard(world.rank if same_ranks else 0)
    with safe_open(shard, framework="pt") as file:
        names = set(file.keys())

        def read(name: str, like: Tensor | None) -> Tensor:
            if same_ranks or like is None:
                return file.get_tensor(name)
            full = read_full(checkpoint, name)
            if isinstance(like, DTensor):
                full = distribute_tensor(
                    full.to(like.device), like.device_mesh, like.placements, src_data_rank=None
                ).to_local()
            return full

        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                _copy(_local(parameter), f"weight/{name}", names, read, parameter)
                if f"step/{name}" in names:
                    optimizer.state[parameter] = {
                        key: _moment(f"{key}/{name}", read, parameter) for key in _MOMENTS
                    }
        torch.set_rng_state(read(_CPU_GENERATOR, None))
        if world.device.type == "cuda" and _CUDA_GENERATOR in names:
            torch.cuda.set_rng_state(read(_CUDA_GENERATOR, None), world.device)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _copy(
    target: Tensor,
    name: str,
    names: set[str],
    read: Callable[[str, Tensor | None], Tensor],
    like: Tensor,
) -> None:
    if name not in names:
        raise CheckpointError(f"the checkpoint has no {name}: it is of another model")
    value = read(name, like)
    if value.shape != target.shape:
        raise CheckpointError(
            f"{name} has shape {list(value.shape)} in the checkpoint, {list(target.shape)} here: "
            "it is of another model"
        )
    target.copy_(value)


def _moment(name: str, read: Callable[[str, Tensor | None], Tensor], parameter: Any) -> Tensor:
    if name.startswith("step/"):
        # AdamW's fused kernels want the count beside the parameter, the others on the CPU.
        return read(name, None).to(parameter.device)
    value = read(name, parameter).to(parameter.device)
    if isinstance(parameter, DTensor):
        return DTensor.from_local(
            value,
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return value
