"""Which part of a checkpoint a rank holds: Megatron's split, as PyTorch's parallel styles place it.

Products into heads and into the MLP's inner width are split by columns of their output, the products
back by columns of their input; the embedding and the head by the vocabulary; norms, gates and the
vision tower's position tables are whole everywhere. A part is read from the file alone.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.models.safetensors_files import SafetensorsFiles
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.weights import canonical_name

_COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1", "lm_head")
_ROWS = ("o_proj", "down_proj", "fc2", "embed_tokens")
_ADDED_ONCE = "fc2.bias"


def rank_spec(spec: ModelSpec, size: int) -> ModelSpec:
    """The sizes of one rank's part: fewer heads and a narrower MLP. InvalidInputError."""
    sizes = {
        "num_key_value_heads": spec.num_kv_heads,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.intermediate_size,
    }
    if spec.vision:
        sizes["vision attention_heads"] = spec.vision.num_heads
        sizes["vision intermediate_size"] = spec.vision.intermediate_size
    for name, number in sizes.items():
        if number % size:
            raise InvalidInputError(
                f"{size} ranks cannot share {name} {number} evenly; use a number that divides it"
            )
    vision = spec.vision and replace(
        spec.vision,
        num_heads=spec.vision.num_heads // size,
        intermediate_size=spec.vision.intermediate_size // size,
    )
    return replace(
        spec,
        num_heads=spec.num_heads // size,
        num_kv_heads=spec.num_kv_heads // size,
        intermediate_size=spec.intermediate_size // size,
        vision=vision,
    )


class RankTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, each cut to this rank's part."""

    def __init__(self, files: SafetensorsFiles, mesh: DeviceMesh) -> None:
        self._files = files
        self._rank, self._size = mesh.get_local_rank(), mesh.size()
        self._parts = _placed({name: files.shape(name) for name in files}, mesh)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._parts:
            whole = self._files[name]
            # Added before the sum over the ranks, so only one of them may have it.
            is_added_once = name.endswith(_ADDED_ONCE) and self._rank > 0
            return torch.zeros_like(whole) if is_added_once else whole
        dim, length = self._parts[name]
        total = self._files.shape(name)[dim]
        begin = min(total, self._rank * -(-total // self._size))  # torch.chunk's parts
        return self._files.part(name, dim, begin, begin + length)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _placed(shapes: Mapping[str, tuple[int, ...]], mesh: DeviceMesh) -> dict[str, tuple[int, int]]:
    """(dimension, length) of this rank's part of each tensor that is split.

    A skeleton of the checkpoint's products on the meta device goes through `parallelize_module`, so
    the parts are those of PyTorch's own styles. Tied weights are no longer one tensor afterwards: the
    skeleton keeps both names apart, and the model ties them again (`Ranks.tied_head`).
    """
    skeleton = nn.Module()
    plan: dict[str, ParallelStyle] = {}
    names: dict[str, str] = {}
    for name, shape in shapes.items():
        path, _, kind = canonical_name(name).rpartition(".")
        last = path.rpartition(".")[2]
        if kind != "weight" or last not in (*_COLUMNS, *_ROWS):
            continue
        names[path] = name.removesuffix(".weight")
        has_bias = f"{names[path]}.bias" in shapes
        module = (
            nn.Embedding(shape[0], shape[1], device="meta")
            if last == "embed_tokens"
            else nn.Linear(shape[1], shape[0], bias=has_bias, device="meta")
        )
        _put(skeleton, path.split("."), module)
        plan[path] = ColwiseParallel() if last in _COLUMNS else RowwiseParallel()
    parallelize_module(skeleton, mesh, plan)
    parts = {}
    for path, prefix in names.items():
        for kind, parameter in skeleton.get_submodule(path).named_parameters():
            assert isinstance(parameter, DTensor), f"{path} was not split"
            (placement,) = parameter.placements
            if isinstance(placement, Shard):
                local = parameter.to_local()
                parts[f"{prefix}.{kind}"] = placement.dim, local.shape[placement.dim]
    return parts


def _put(root: nn.Module, path: list[str], module: nn.Module) -> None:
    for part in path[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(path[-1], module)


def open_mesh(device: torch.device) -> DeviceMesh:
    """All processes that torchrun started, as one dimension. InvalidInputError."""
    if not torch.distributed.is_torchelastic_launched() and not torch.distributed.is_initialized():
        raise InvalidInputError(
            "tensor_parallel needs one process a part: start it with torchrun --nproc-per-node N"
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        )
        atexit.register(torch.distributed.destroy_process_group)  # its threads outlive nothing
    return DeviceMesh(device.type, list(range(torch.distributed.get_world_size())))
