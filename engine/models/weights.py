"""Tensors by name on their way into a model: found, checked, converted and fused.

A layer's constructor takes the tensors that it needs by their HF names, so what a model reads is
written once, where it is used. Both HF key layouts reach the same names here. Invariant: each
tensor is taken once, and `check_all_taken` fails on one that nobody took.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stagebeam.engine.errors import CheckpointError
from stagebeam.engine.models.ranks import ONE_RANK, Ranks

# Buffers that old Llama checkpoints carry and no model reads.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"
_MAX_NAMED = 5


def canonical_name(name: str) -> str:
    """The one name of a tensor in either HF layout.

    `language_model.model.X` and `model.language_model.X` are `language_model.X`, both heads are
    `lm_head.weight`, `model.vision_model.X` is `vision_model.X`, and Llama's `model.X` is `X`.
    """
    name = name.removeprefix("model.")
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "language_model." + name.removeprefix("language_model.model.")
    return name


class Weights:
    """A checkpoint's tensors by canonical name.

    source: tensors by their names in the file; reading one may be lazy
    ranks:  the processes that hold the parts of what `source` gives
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.ranks = ranks
        self._source = source
        self._device = device
        self._dtype = dtype
        self._names: dict[str, str] = {}
        for name in source:
            if name.endswith(_IGNORED_SUFFIX):
                continue
            known = self._names.setdefault(canonical_name(name), name)
            if known != name:
                raise CheckpointError(
                    f"tensors {known!r} and {name!r} are the same one in HF's two layouts; "
                    "keep one of them"
                )
        self._untaken = set(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, copied to the model's device and dtype."""
        return self._into(self._new(*shape), name, shape)

    def borrow(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape as the checkpoint holds it: its dtype, its place, not copied."""
        return self._find(name, shape)

    def take_part(self, name: str, *shape: int) -> Tensor:
        """A tensor of `shape` whose rows the ranks share out: this rank's."""
        return self.take(name, self.ranks.num_rows(shape[0]), *shape[1:])

    def take_fused(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> Tensor:
        """Matrices of one width stacked into one, [sum(rows), columns]: one product instead of many."""
        fused = self._new(sum(rows), columns)
        begin = 0
        for name, num_rows in zip(names, rows, strict=True):
            self._into(fused[begin : begin + num_rows], name, (num_rows, columns))
            begin += num_rows
        return fused

    def check_all_taken(self) -> None:
        """Fail on tensors that the model does not have."""
        if self._untaken:
            names = sorted(self._names[name] for name in self._untaken)
            shown = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
            raise CheckpointError(
                f"{len(names)} tensors of the checkpoint are not in the model that its config.json "
                f"describes: {shown}; check that the two belong together"
            )

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._device, dtype=self._dtype)

    def _into(self, target: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        return target.copy_(self._find(name, shape))

    def _find(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._names:
            raise CheckpointError(
                f'tensor {name!r} (with or without HF\'s "model.") is missing from the checkpoint, '
                f"expected shape {list(shape)}; is the download complete?"
            )
        source_name = self._names[name]
        tensor = self._source[source_name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"tensor {source_name!r} has shape {list(tensor.shape)}, expected {list(shape)} "
                "by config.json; check that the two belong together"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"tensor {source_name!r} is {tensor.dtype}, expected a floating-point type; "
                "quantized checkpoints are not supported"
            )
        self._untaken.discard(name)
        return tensor
