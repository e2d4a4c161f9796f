"""What a training example is, and what a data set must offer.

An example is finished work: token ids, which of them bear loss, and at most one preprocessed image.
Data sets may build it when asked (files) or hold it ready (in memory); nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInputs:
    """One preprocessed image, without padded tiles.

    pixel_values:    [num_tiles, 3, H, W] float32
    aspect_ratio_id: HF's id of the tile arrangement, 1-based
    key:             examples of a batch with equal keys share one pass of the vision tower; None
                     never shares
    """

    pixel_values: Tensor
    aspect_ratio_id: int = 1
    key: Hashable = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation, tokenised.

    input_ids: [n] int64; labelled: [n] bool, True where the token itself bears loss (so its
    prediction from the token before counts); image: None for a text-only row
    targets: [n] int64, what a labelled position is predicted as where that is not its own token
    (a judge example marks the wrong words of a candidate that way); None: the tokens themselves
    weights: [n] float32, each label's weight in the loss; None: 1 each
    early: [n] int64, before how many of the last layers a label is predicted, so that those can read
    it (a judge's marks); 0 is after all of them, and None is 0 everywhere
    """

    input_ids: Tensor
    labelled: Tensor
    image: ImageInputs | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    early: Tensor | None = None


class ExampleDataset(Protocol):
    """A sized set of examples; `length` may be an estimate and must be cheap (length bucketing).

    An item may be several examples that stay in one batch (a judge's pair in both orders).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | tuple[Example, ...]: ...

    def length(self, index: int) -> int: ...


class MemoryDataset:
    """Examples held in a sequence."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def length(self, index: int) -> int:
        return len(self._examples[index].input_ids)
