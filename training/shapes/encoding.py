"""Conversations to token ids with labels, through the chat template's own pieces.

Owns the template's fixed parts as ids, so that thousands of examples a second can be built; a test
holds them equal to the tokenizer's own rendering. Labels cover the reply and its end of turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from stagebeam.training.examples import Example, ImageInputs
from stagebeam.training.shapes.tokenizer import BOS, END_HEADER, END_TURN, IMAGE, START_HEADER

IMAGE_MEAN = 0.5  # of the checkpoint's image processor
IMAGE_STD = 0.5


Weigh = Callable[[list[int]], list[float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A position of the user text's ids that is to predict `token`, with its weight in the loss,
    before the last `early` layers."""

    position: int
    token: int
    weight: float = 1.0
    early: int = 1


class ChatEncoder:
    """Builds one-turn conversations as examples."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._user = self.ids(f"{BOS}{START_HEADER}user{END_HEADER}\n\n")
        self._reply = self.ids(f"{END_TURN}{START_HEADER}assistant{END_HEADER}\n\n")
        self._image = self.ids(IMAGE)
        self._end = self.ids(END_TURN)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, user_text: str, has_image: bool) -> list[int]:
        """The user turn and the header of the reply."""
        image = self._image if has_image else []
        return [*self._user, *image, *self.ids(user_text), *self._reply]

    def example(
        self,
        user_text: str,
        reply: str,
        image: ImageInputs | None = None,
        *,
        given: str = "",
        marks: Sequence[Mark] = (),
        weigh: Weigh | None = None,
    ) -> Example:
        """A conversation with loss on the reply and its end of turn.

        given: how the reply begins, without loss
        marks: positions of the user turn that are to predict a token before the last layers (see
               Example.targets and early)
        weigh: gives the weight of each id of the reply and its end of turn
        """
        head = [*self._user, *(self._image if image is not None else [])]
        user = self.ids(user_text)
        before = [*head, *user, *self._reply, *(self.ids(given) if given else [])]
        said = [*self.ids(reply), *self._end]
        ids = [*before, *said]
        input_ids = torch.tensor(ids)
        labelled = torch.zeros(len(ids), dtype=torch.bool)
        labelled[len(before) :] = True
        weights = torch.ones(len(ids))
        if weigh is not None:
            weights[len(before) :] = torch.tensor(weigh(said))
        if not marks:
            return Example(input_ids=input_ids, labelled=labelled, image=image, weights=weights)
        targets, early = input_ids.clone(), torch.zeros(len(ids), dtype=torch.int64)
        for mark in marks:
            at = len(head) + mark.position + 1
            targets[at], weights[at], early[at] = mark.token, mark.weight, mark.early
            labelled[at] = True
        return Example(
            input_ids=input_ids,
            labelled=labelled & (weights > 0),
            image=image,
            targets=targets,
            weights=weights,
            early=early,
        )


def image_inputs(image: Image.Image | NDArray[np.uint8]) -> ImageInputs:
    """One tile, scaled as the checkpoint's image processor scales it (no resize)."""
    return ImageInputs(pixel_values=pixel_tensor(np.asarray(image)))


def pixel_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, 3] uint8 to [1, 3, H, W] float32."""
    scaled = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
    return ((scaled / 255 - IMAGE_MEAN) / IMAGE_STD)[None]
