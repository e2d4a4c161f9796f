"""Examples to one padded batch, with the masks that Mllama's layers need.

Right padding: a causal model needs no mask for it, since padding bears no loss and comes last.
Images are stacked once per key, however many rows ask about them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from stagebeam.training.examples import Example, ImageInputs

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What collating needs of a model's config.

    image_token_id is None for a model without vision; image_size and max_num_tiles are then 0.
    """

    pad_token_id: int
    image_token_id: int | None = None
    max_num_tiles: int = 0
    image_size: int = 0

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelShape:
        """Read an HF Mllama or Llama config; a missing pad token becomes 0 (padding bears no loss)."""
        text = config.get_text_config()
        pad = text.pad_token_id if text.pad_token_id is not None else 0
        if config.model_type != "mllama":
            return cls(pad_token_id=pad)
        vision = config.vision_config
        return cls(
            pad_token_id=pad,
            image_token_id=config.image_token_index,
            max_num_tiles=vision.max_num_tiles,
            image_size=vision.image_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """The images of a batch and which rows see them.

    pixel_values:     [num_images, 1, max_num_tiles, 3, H, W] float32, padded tiles are zeros
    aspect_ratio_ids: [num_images, 1] int64; num_tiles: [num_images] int64
    row_image:        [B] int64, the row's image; 0 for rows without one
    row_has_image:    [B] bool, or None where every row has one
    image_start:      [B] int64, position of the row's image token
    """

    pixel_values: Tensor
    aspect_ratio_ids: Tensor
    num_tiles: Tensor
    row_image: Tensor
    row_has_image: Tensor | None
    image_start: Tensor
    has_padded_tiles: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch of one rank.

    input_ids:     [B, T] int64, right-padded
    label_rows:    [L] int64, flat positions b * T + t whose hidden state predicts a labelled token
    label_targets: [L] int64, those tokens
    label_weights: [L] float32, or None where each weighs 1; total_weight: their sum
    label_early:   [L] int64, before how many of the last layers it is predicted; None: 0 everywhere
    num_tokens:    tokens that are not padding
    """

    input_ids: Tensor
    label_rows: Tensor
    label_targets: Tensor
    num_tokens: int
    total_weight: float
    label_weights: Tensor | None = None
    label_early: Tensor | None = None
    images: ImageBatch | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with every tensor on `device`."""
        if device.type == "cpu":
            return self
        images = self.images and _move(self.images, device)
        return replace(_move(self, device), images=images)


_T = TypeVar("_T", Batch, ImageBatch)


def _move(value: _T, device: torch.device) -> _T:
    tensors = {f.name: getattr(value, f.name) for f in fields(value)}
    moved: dict[str, Any] = {
        k: v.to(device, non_blocking=True) for k, v in tensors.items() if torch.is_tensor(v)
    }
    return replace(value, **moved)


def collate(examples: Sequence[Example], shape: ModelShape) -> Batch:
    """Pad and stack `examples`; an empty sequence gives one row of padding that bears no loss."""
    if not examples:
        pad = torch.full((2,), shape.pad_token_id)
        empty = Example(input_ids=pad, labelled=torch.zeros(2, dtype=torch.bool))
        return replace(collate([empty], shape), num_tokens=0)
    lengths = [len(example.input_ids) for example in examples]
    width = max(lengths)
    input_ids = torch.full((len(examples), width), shape.pad_token_id, dtype=torch.int64)
    label_rows, label_targets, label_weights, label_early = [], [], [], []
    for row, example in enumerate(examples):
        input_ids[row, : lengths[row]] = example.input_ids
        # The first token has nothing before it to be predicted from.
        positions = example.labelled[1:].nonzero().squeeze(1)
        label_rows.append(positions + row * width)
        targets = example.input_ids if example.targets is None else example.targets
        label_targets.append(targets[positions + 1])
        weights, early = example.weights, example.early
        ones = torch.ones(len(positions))
        label_weights.append(ones if weights is None else weights[positions + 1])
        label_early.append(positions * 0 if early is None else early[positions + 1])
    weight = torch.cat(label_weights)
    early_labels = torch.cat(label_early)
    return Batch(
        input_ids=input_ids,
        label_rows=torch.cat(label_rows),
        label_targets=torch.cat(label_targets).to(torch.int64),
        num_tokens=sum(lengths),
        total_weight=weight.double().sum().item(),
        label_weights=weight if any(one.weights is not None for one in examples) else None,
        label_early=early_labels if early_labels.any() else None,
        images=_collate_images(examples, input_ids, shape),
    )


def dummy_images(num_rows: int, shape: ModelShape, device: torch.device) -> ImageBatch:
    """One black image that no row sees: it makes a rank without images run the same layers."""
    size = shape.image_size
    rows = torch.zeros(num_rows, dtype=torch.int64, device=device)
    return ImageBatch(
        pixel_values=torch.zeros(1, 1, shape.max_num_tiles, 3, size, size, device=device),
        aspect_ratio_ids=torch.ones(1, 1, dtype=torch.int64, device=device),
        num_tiles=torch.ones(1, dtype=torch.int64, device=device),
        row_image=rows,
        row_has_image=rows.bool(),
        image_start=rows,
        has_padded_tiles=shape.max_num_tiles > 1,
    )


def _collate_images(
    examples: Sequence[Example], input_ids: Tensor, shape: ModelShape
) -> ImageBatch | None:
    images: list[ImageInputs] = []
    index_of: dict[Hashable, int] = {}
    row_image = torch.zeros(len(examples), dtype=torch.int64)
    has_image = torch.zeros(len(examples), dtype=torch.bool)
    for row, example in enumerate(examples):
        image = example.image
        if image is None:
            continue
        key = id(image) if image.key is None else ("key", image.key)
        if key not in index_of:
            index_of[key] = len(images)
            images.append(image)
        row_image[row] = index_of[key]
        has_image[row] = True
    if not images:
        return None
    if shape.image_token_id is None:
        raise ValueError("an example has an image but the model has no vision tower")
    first = images[0].pixel_values
    pixels = first.new_zeros(len(images), 1, shape.max_num_tiles, *first.shape[1:])
    for index, image in enumerate(images):
        pixels[index, 0, : len(image.pixel_values)] = image.pixel_values
    num_tiles = torch.tensor([len(image.pixel_values) for image in images])
    is_image_token = input_ids == shape.image_token_id
    missing = (has_image & ~is_image_token.any(dim=1)).nonzero().squeeze(1).tolist()
    if missing:
        raise ValueError(f"rows {missing} of the batch have an image but no image token")
    return ImageBatch(
        pixel_values=pixels,
        aspect_ratio_ids=torch.tensor([[image.aspect_ratio_id] for image in images]),
        num_tiles=num_tiles,
        row_image=row_image,
        row_has_image=None if bool(has_image.all()) else has_image,
        image_start=is_image_token.int().argmax(dim=1),
        has_padded_tiles=bool((num_tiles < shape.max_num_tiles).any()),
    )
