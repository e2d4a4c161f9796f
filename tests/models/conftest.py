"""Random HF models on disk, and a runner that gives `Model.forward` hand-made block tables.

The runner stands in for the engine: it lays the sequences' blocks out backwards with a hole between
any two, and fills every block and slot with NaN before anything is written to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedModel,
)

from stagebeam.engine.models.forward import (
    BranchAttention,
    CrossRows,
    ForwardBatch,
    KVLayers,
    PrefillAttention,
)
from stagebeam.engine.models.loader import Model
from stagebeam.kernels.registry import Ops, resolve

BLOCK_SIZE = 16
TEXT_SIZES: dict[str, object] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models lose more to the hand-over between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ops() -> Ops:
    return resolve("reference")


@dataclass
class Image:
    """A random image as the vision tower takes it, with HF's names for its parts."""

    pixel_values: Tensor
    aspect_ratio_id: int
    num_tiles: int

    @property
    def mask(self) -> Tensor:
        return (torch.arange(len(self.pixel_values)) < self.num_tiles).long()

    def for_hf(self, position: int, length: int) -> dict[str, Tensor]:
        """HF's arguments for a prompt of `length` tokens with the image token at `position`."""
        cross_mask = torch.zeros(1, length, 1, len(self.pixel_values), dtype=torch.long)
        cross_mask[:, position:, :, : self.num_tiles] = 1
        return {
            "pixel_values": self.pixel_values[None, None],
            "aspect_ratio_ids": torch.tensor([[self.aspect_ratio_id]]),
            "aspect_ratio_mask": self.mask[None, None],
            "cross_attention_mask": cross_mask,
        }


def random_image(size: int, aspect_ratio_id: int, num_tiles: int, seed: int = 0) -> Image:
    pixels = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))
    pixels[num_tiles:] = 0  # what HF's processor puts into padded tiles
    return Image(pixels, aspect_ratio_id, num_tiles)


def random_weights(model: PreTrainedModel, seed: int) -> None:
    """Weights large enough to matter, norms near one, and every gate random in +-[0.3, 1]."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("gate", "gate_attn", "gate_ffn")):
            sign = torch.randint(0, 2, (1,), generator=generator) * 2 - 1
            value = sign * (0.3 + 0.7 * torch.rand(1, generator=generator))
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.2 * torch.randn(parameter.shape, generator=generator)
        else:
            scale = 0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            value = scale * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(value)


@pytest.fixture(scope="session")
def random_mllama() -> Callable[..., MllamaForConditionalGeneration]:
    """A tiny Mllama; keyword arguments go to its text config."""

    def make(
        seed: int = 0, dtype: torch.dtype = torch.float32, **text: object
    ) -> MllamaForConditionalGeneration:
        config = MllamaConfig(
            vision_config={
                "hidden_size": 24,
                "num_hidden_layers": 3,
                "num_global_layers": 2,
                "attention_heads": 2,
                "intermediate_size": 40,
                "vision_output_dim": 72,
                "image_size": 42,
                "patch_size": 14,
                "intermediate_layers_indices": [0, 2],
            },
            text_config={
                **TEXT_SIZES,
                "num_hidden_layers": 5,
                "cross_attention_layers": [1, 3],
                **text,
            },
            image_token_index=199,
        )
        model = MllamaForConditionalGeneration(config).eval()
        random_weights(model, seed)
        if config.text_config.tie_word_embeddings:
            embedding = model.model.language_model.embed_tokens.weight
            model.lm_head.weight.data.copy_(embedding[: config.text_config.vocab_size])
        return model.to(dtype)

    return make


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., LlamaForCausalLM]:
    """A tiny Llama; keyword arguments go to its config."""

    def make(seed: int = 0, **config: object) -> LlamaForCausalLM:
        sizes = {**TEXT_SIZES, "num_hidden_layers": 3, **config}
        model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
        random_weights(model, seed)
        return model

    return make


class PagedRun:
    """Sequences on hand-made caches, run together.

    images: a sequence's image and the position of its image token; None for text alone
    """

    def __init__(
        self, model: Model, images: Sequence[tuple[Image, int] | None], *, num_tokens: int
    ) -> None:
        spec, dtype = model.spec, model.lm_head.dtype
        self.model = model
        self.lengths = [0 for _ in images]
        width = -(-num_tokens // BLOCK_SIZE)
        # Odd blocks from the last down; the even ones belong to nobody.
        self.tables = np.arange(2 * width * len(images) - 1, 0, -2).reshape(len(images), width)
        block = (BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self.kv = _poisoned(spec.num_layers, (2 * self.tables.size, *block), dtype)
        slot = (spec.vision_tokens, spec.num_kv_heads, spec.head_dim)
        self.cross_kv = _poisoned(spec.num_cross_layers, (2 * len(images), *slot), dtype)
        self._slots = np.array([-1 if seen is None else 2 * i + 1 for i, seen in enumerate(images)])
        self._places = np.array([0 if seen is None else seen[1] for seen in images])
        self._valid_tokens = np.array(
            [1 if seen is None else seen[0].num_tiles * spec.tokens_per_tile for seen in images]
        )
        for i, seen in enumerate(images):
            if seen is not None:
                self._encode(seen[0], 2 * i + 1)

    def prefill(
        self, token_ids: Sequence[Sequence[int]], is_last_wanted: Sequence[bool] | None = None
    ) -> list[Tensor]:
        """Logits of every token given, [len(token_ids[i]), vocab_size] a sequence, in one pass.

        is_last_wanted: only the last token's, [1, vocab_size] or, where False, none [0, vocab_size]
        """
        counts = np.array([len(ids) for ids in token_ids])
        positions = np.concatenate([np.arange(n) + at for n, at in zip(counts, self.lengths)])
        self.lengths = [at + int(n) for n, at in zip(counts, self.lengths)]
        attention = PrefillAttention(
            cu_seqlens_q=_int32([0, *np.cumsum(counts)]),
            seq_lens=_int32(self.lengths),
            block_tables=_int32(self.tables),
            max_seqlen_q=int(counts.max()),
            max_seqlen_k=max(self.lengths),
        )
        rows = np.repeat(np.arange(len(counts)), counts)
        outputs = None
        if is_last_wanted is not None:
            outputs = (np.cumsum(counts) - 1)[np.array(is_last_wanted)]
            counts = np.array(is_last_wanted, dtype=np.int64)
        logits = self._run(np.concatenate(token_ids), positions, rows, attention, outputs)
        return list(logits.split(counts.tolist()))

    def decode(self, token_ids: Sequence[int]) -> Tensor:
        """Logits of one more token a sequence, [R, vocab_size]: full blocks are each one's trunk."""
        positions = np.array(self.lengths)
        num_trunk = positions // BLOCK_SIZE
        self.lengths = [at + 1 for at in self.lengths]
        rows = np.arange(len(positions))
        trunk_tables = self.tables[:, : num_trunk.max()].copy()
        trunk_tables[np.arange(num_trunk.max()) >= num_trunk[:, None]] = -1
        attention = BranchAttention(
            group_offsets=_int32(np.arange(len(rows) + 1)),
            row_group=_int32(rows),
            trunk_tables=_int32(trunk_tables),
            trunk_lens=_int32(num_trunk * BLOCK_SIZE),
            tail_tables=_int32(self.tables[rows, num_trunk][:, None]),
            tail_lens=_int32(positions + 1 - num_trunk * BLOCK_SIZE),
            max_group_rows=1,
        )
        return self._run(np.array(token_ids), positions, rows, attention)

    def greedy(self, logits: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Argmax tokens after `logits` [R, vocab_size]: ids [R, num_tokens], and the logits
        [R, num_tokens - 1, vocab_size] after each of them but the last."""
        token_ids, rows = [logits.argmax(-1)], []
        while len(token_ids) < num_tokens:
            rows.append(self.decode(token_ids[-1].tolist()))
            token_ids.append(rows[-1].argmax(-1))
        return torch.stack(token_ids, 1), torch.stack(rows, 1)

    def _run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        rows: np.ndarray,
        attention: PrefillAttention | BranchAttention,
        outputs: np.ndarray | None = None,
    ) -> Tensor:
        """rows: each token's sequence"""
        slot_mapping = self.tables[rows, positions // BLOCK_SIZE] * BLOCK_SIZE
        batch = ForwardBatch(
            token_ids=torch.from_numpy(token_ids),
            positions=torch.from_numpy(positions),
            slot_mapping=_int32(slot_mapping + positions % BLOCK_SIZE),
            attention=attention,
            cross=self._cross(positions, rows) if (self._slots >= 0).any() else None,
            output_rows=None if outputs is None else torch.from_numpy(outputs),
        )
        with torch.inference_mode():
            return self.model.logits(self.model.forward(batch, self.kv, self.cross_kv))

    def _cross(self, positions: np.ndarray, rows: np.ndarray) -> CrossRows:
        sees_image = positions >= self._places[rows]
        kv_lens = np.where(sees_image, self._valid_tokens[rows], self.model.spec.vision_tokens)
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        offsets = np.append(starts, len(rows))
        return CrossRows(
            group_offsets=_int32(offsets),
            group_slots=_int32(self._slots[rows[starts]]),
            max_group_rows=int(np.diff(offsets).max()),
            slots=_int32(self._slots[rows]),
            kv_lens=_int32(kv_lens),
            has_mlp=torch.from_numpy(sees_image),
        )

    def _encode(self, image: Image, slot: int) -> None:
        layers = self.model.encode_image(image.pixel_values, image.aspect_ratio_id, image.mask)
        for (k_slots, v_slots), (k, v) in zip(self.cross_kv, layers, strict=True):
            k_slots[slot], v_slots[slot] = k, v


def _poisoned(num_layers: int, shape: tuple[int, ...], dtype: torch.dtype) -> KVLayers:
    k_cache = torch.full((num_layers, *shape), torch.nan, dtype=dtype)
    return list(zip(k_cache, k_cache.clone()))


def _int32(values: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int32))


@pytest.fixture(scope="session")
def paged_run() -> type[PagedRun]:
    return PagedRun


@pytest.fixture(scope="session")
def image() -> Callable[..., Image]:
    return random_image


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a HF model to a new folder; `is_hub_layout` picks which of HF's key layouts."""

    def save(model: PreTrainedModel, is_hub_layout: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder, save_original_format=is_hub_layout)
        return folder

    return save
