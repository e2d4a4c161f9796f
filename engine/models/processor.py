"""From a user's text and image to token ids and pixels, as the checkpoint's HF processor does it.

The tokenizer, chat template and tile layout are HF's; torchvision is not needed. One class serves
vision and text-only folders: `has_vision` tells them apart.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.engine.errors import CheckpointError, ImageError, InvalidInputError
from stagebeam.engine.models.images import ImageSource, load_image, thumbnail_png
from stagebeam.engine.models.loader import read_json
from stagebeam.engine.models.spec import ModelSpec

SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k")
TEXT_PART = "text"

# Words whose tokens the tokenizer remembers. Its own limit of 10,000 is 25 MB and more where words
# are long (some tokenizers split nothing), filling for hundreds of questions; no speed was lost.
MAX_CACHED_WORDS = 256

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """An image as the vision tower takes it.

    pixel_values:      [max_num_tiles, 3, image_size, image_size] float32, valid tiles first
    aspect_ratio_mask: [max_num_tiles] int64, 1 for a valid tile
    key:               equal for equal pixels and tiles, whatever the image came from
    png:               a thumbnail
    """

    pixel_values: Tensor
    aspect_ratio_id: int
    aspect_ratio_mask: Tensor
    num_tiles: int
    key: bytes
    png: bytes


class Processor:
    """A checkpoint's tokenizer, chat template and image processor."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._spec = spec
        self.tokenizer = _load_tokenizer(folder)
        specials = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        self._specials = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        self._image_processor = _load_image_processor(folder, spec) if spec.vision else None
        generation = read_json(folder / "generation_config.json") or {}
        self.generation_defaults = {
            name: generation[name] for name in SAMPLING_DEFAULTS if generation.get(name) is not None
        }
        self.stage_plan = read_json(folder / "stage_plan.json")
        trained = (read_json(folder / "stagebeam.json") or {}).get("add_bos")
        self.default_add_bos = self._adds_bos() if trained is None else bool(trained)

    @property
    def has_vision(self) -> bool:
        return self._image_processor is not None

    def encode(self, text: str, add_bos: bool = False) -> list[int]:
        """Token ids of a text; special tokens written in it become their ids.

        add_bos: put the begin-of-text id before them, also where the text starts with one already
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not add_bos:
            return ids
        bos_id = self.tokenizer.bos_token_id
        if bos_id is None:
            raise InvalidInputError("add_bos is true but the tokenizer has no begin-of-text token")
        return [bos_id, *ids]

    def without_specials(self, text: str) -> str:
        """The text with every special token's spelling broken by a space, so that it stays text."""
        return self._specials.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The chat template's text of messages in HF's form, image parts included."""
        if self.tokenizer.chat_template is None:
            raise InvalidInputError(
                "this checkpoint has no chat template (chat_template.jinja); use Engine.generate with "
                "a raw prompt"
            )
        if not self.has_vision:
            messages = [_as_plain_text(message) for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise InvalidInputError(f"the chat template refuses these messages: {error}") from error

    def preprocess(self, image: ImageSource) -> PreparedImage:
        """Load an image and cut it into tiles; ImageError if it cannot be read or shown."""
        if self._image_processor is None:
            raise ImageError("this model is text-only and cannot see an image; ask without one")
        rgb = load_image(image)
        batch = self._image_processor(rgb, return_tensors="pt")
        pixel_values = batch["pixel_values"][0, 0]
        aspect_ratio_id = int(batch["aspect_ratio_ids"][0, 0])
        num_tiles = int(batch["num_tiles"][0][0])
        content = hashlib.blake2b(pixel_values[:num_tiles].numpy().tobytes(), digest_size=16)
        content.update(bytes([aspect_ratio_id, num_tiles]))
        return PreparedImage(
            pixel_values=pixel_values,
            aspect_ratio_id=aspect_ratio_id,
            aspect_ratio_mask=batch["aspect_ratio_mask"][0, 0],
            num_tiles=num_tiles,
            key=content.digest(),
            png=thumbnail_png(rgb),
        )

    def image_token_position(self, token_ids: Sequence[int]) -> int | None:
        """Where a prompt's image token stands; None without one.

        Raises InvalidInputError on more than one: this engine gives each question one image.
        """
        places = [i for i, token in enumerate(token_ids) if token == self._spec.image_token_id]
        if len(places) > 1:
            raise InvalidInputError(
                f"the prompt has {len(places)} image tokens, expected at most 1; ask about one image "
                "at a time, and keep the image token's text out of the question"
            )
        return places[0] if places else None

    def _adds_bos(self) -> bool:
        """Whether begin-of-text must be put before a rendered prompt: HF's tokenizer would put one
        and the chat template does not write it itself."""
        bos_id = self.tokenizer.bos_token_id
        if bos_id is None or self.tokenizer("a")["input_ids"][:1] != [bos_id]:
            return False
        if self.tokenizer.chat_template is None:
            return True
        text = [{"type": TEXT_PART, TEXT_PART: "a"}]
        try:
            rendered = self.render([{"role": "user", "content": text}])
        except InvalidInputError:
            return True  # a template for other messages; raw prompts still need one
        return self.encode(rendered)[:1] != [bos_id]


def load_processor(path: str | os.PathLike[str], spec: ModelSpec) -> Processor:
    """The processor of a HF folder whose spec is `spec`."""
    return Processor(Path(path), spec)


def _as_plain_text(message: Message) -> dict[str, Any]:
    """The message with its parts joined: text-only templates expect a string."""
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    if any(part["type"] != TEXT_PART for part in content):
        raise ImageError("this model is text-only and cannot see an image; ask without one")
    return {**message, "content": "".join(part[TEXT_PART] for part in content)}


def _load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(f"cannot load the tokenizer of {folder}: {error}") from error
    if tokenizer.chat_template is None:
        # Where HF's processors kept the template before chat_template.jinja.
        old = read_json(folder / "chat_template.json") or {}
        tokenizer.chat_template = old.get("chat_template")
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if hasattr(model, "_resize_cache"):  # the models that have a cache; there is no public name
        model._resize_cache(MAX_CACHED_WORDS)
    return tokenizer


def _load_image_processor(folder: Path, spec: ModelSpec) -> MllamaImageProcessorPil:
    assert spec.vision is not None
    path = folder / "preprocessor_config.json"
    config = read_json(path)
    if config is None:  # transformers 5 writes one file for the whole processor
        path = folder / "processor_config.json"
        config = (read_json(path) or {}).get("image_processor")
    if config is None:
        raise CheckpointError(
            f"{folder} has neither preprocessor_config.json nor processor_config.json with an "
            "image_processor; a vision model needs one"
        )
    try:
        processor = MllamaImageProcessorPil(
            **{k: v for k, v in config.items() if not k.endswith("processor_type")}
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    got = (processor.size["height"], processor.max_image_tiles)
    expected = (spec.vision.image_size, spec.vision.max_num_tiles)
    if got != expected:
        raise CheckpointError(
            f"{path}: tile size and most tiles are {got}, expected {expected} by config.json"
        )
    return processor
