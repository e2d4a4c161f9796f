"""A data set on disk, in the LLaVA-CoT-100k layout: `train.jsonl` with its images beside it.

Every row is checked when the data set is opened; rows are then read, rendered and tokenised when
asked for, so memory holds only line offsets.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.engine.errors import CheckpointError
from stagebeam.training.chat import ChatEncoder
from stagebeam.training.examples import Example, ImageInputs
from stagebeam.training.fsdp import read_model_config
from stagebeam.training.rows import DataError, Row, parse_row

logger = logging.getLogger(__name__)

_MAX_SHOWN = 5
_CHARACTERS_PER_TOKEN = 4


class ImageReader:
    """Reads image files as HF's Mllama image processor prepares them."""

    def __init__(self, model_dir: str | os.PathLike[str]) -> None:
        try:
            self._processor = MllamaImageProcessorPil.from_pretrained(model_dir)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot read the image processor of {os.fspath(model_dir)}: {error}"
            ) from error

    def read(self, path: Path) -> ImageInputs:
        """Open and preprocess one image file; raises DataError naming it."""
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the image {path}: {error}") from error
        return self.prepare(image, key=str(path))

    def prepare(self, image: Image.Image, *, key: str | None = None) -> ImageInputs:
        """Preprocess an RGB image in memory."""
        inputs = self._processor(images=image, return_tensors="np")
        num_tiles = inputs["num_tiles"][0][0]
        return ImageInputs(
            pixel_values=torch.from_numpy(inputs["pixel_values"][0, 0, :num_tiles].copy()),
            aspect_ratio_id=int(inputs["aspect_ratio_ids"][0, 0]),
            key=key,
        )


class ConversationDataset:
    """The rows of `root/train.jsonl` (or of `root`, a .jsonl file with images relative to it).

    image_reader: None for a model without vision; a row with an image is then an error
    max_length:   longer conversations are cut on the right, with a warning
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        encoder: ChatEncoder,
        image_reader: ImageReader | None,
        *,
        image_token: str | None = None,
        max_length: int | None = None,
    ) -> None:
        path = Path(root)
        self.file = path if path.suffix == ".jsonl" else path / "train.jsonl"
        self.root = self.file.parent
        self._encoder = encoder
        self._image_reader = image_reader
        self._image_token = image_token
        self._max_length = max_length
        if not self.file.is_file():
            raise DataError(
                f"{self.file} does not exist; expected a folder with train.jsonl and its images"
            )
        self._offsets, self._lengths, self._lines = self._scan()

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Row:
        """The checked row, read anew."""
        with open(self.file, "rb") as file:
            file.seek(self._offsets[index])
            return self._parse(file.readline(), int(self._lines[index]))

    def __getitem__(self, index: int) -> Example:
        row = self.row(index)
        image = None
        if row.image is not None and self._image_reader is not None:
            image = self._image_reader.read(row.image)
        example = self._encoder.encode(row.messages(), image)
        limit = self._max_length
        if limit is None or len(example.input_ids) <= limit:
            return example
        where = self._where(int(self._lines[index]))
        logger.warning("%s: cut from %d to %d tokens", where, len(example.input_ids), limit)
        return Example(
            input_ids=example.input_ids[:limit], labelled=example.labelled[:limit], image=image
        )

    def length(self, index: int) -> int:
        return int(self._lengths[index])

    def _scan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        offsets, lengths, lines, problems = [], [], [], []
        position = 0
        with open(self.file, "rb") as file:
            for number, line in enumerate(file, start=1):
                start, position = position, position + len(line)
                if not line.strip():
                    continue
                try:
                    row = self._parse(line, number)
                except DataError as error:
                    problems.append(str(error))
                    continue
                offsets.append(start)
                lines.append(number)
                characters = sum(len(text) for _, text in row.turns)
                lengths.append(characters // _CHARACTERS_PER_TOKEN)
        if problems:
            more = len(problems) - _MAX_SHOWN
            tail = f"\n... and {more} more rows" if more > 0 else ""
            raise DataError("\n".join(problems[:_MAX_SHOWN]) + tail)
        if not lines:
            raise DataError(f"{self.file} has no rows")
        return np.array(offsets), np.array(lengths), np.array(lines)

    def _parse(self, line: bytes, number: int) -> Row:
        row = parse_row(
            line,
            where=self._where(number),
            root=self.root,
            special_token_in=self._encoder.special_token_in,
            image_token=self._image_token,
        )
        if row.image is not None and self._image_reader is None:
            raise DataError(
                f"{self._where(number)}: has an image but the model has no vision tower"
            )
        return row

    def _where(self, number: int) -> str:
        return f"{self.file}, line {number}"


def open_conversations(
    data_dir: str | os.PathLike[str],
    model_dir: str | os.PathLike[str],
    *,
    add_bos: bool | None = None,
    max_length: int | None = None,
) -> tuple[ConversationDataset, ChatEncoder]:
    """Open a data set for the model in `model_dir`, with that folder's tokenizer and processor."""
    model_config = read_model_config(model_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the tokenizer of {os.fspath(model_dir)}: {error}"
        ) from error
    encoder = ChatEncoder(tokenizer, add_bos=add_bos)
    has_vision = model_config.model_type == "mllama"
    image_token = None
    if has_vision:
        image_token = tokenizer.convert_ids_to_tokens(model_config.image_token_index)
    dataset = ConversationDataset(
        data_dir,
        encoder,
        ImageReader(model_dir) if has_vision else None,
        image_token=image_token,
        max_length=max_length or model_config.get_text_config().max_position_embeddings,
    )
    return dataset, encoder
