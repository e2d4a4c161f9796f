"""The bundled model's architecture and its starting weights.

HF's initialisation (standard deviation 0.02, every gate 0) hardly trains so small a model, so every
matrix is drawn at 1/sqrt(fan_in) and the cross-attention gates start open.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from stagebeam.training.shapes.encoding import IMAGE_MEAN, IMAGE_STD
from stagebeam.training.shapes.judge_pairs import SHAPES_PLAN
from stagebeam.training.shapes.scene import CELL_PIXELS, IMAGE_PIXELS
from stagebeam.training.shapes.sight import NUM_CELLS, cell_of_patches, train_sight_
from stagebeam.training.shapes.tokenizer import BOS, END_TURN, IMAGE, PAD, as_transformers

if TYPE_CHECKING:
    from transformers import MllamaConfig

HIDDEN_SIZE = 192
VISION_SIZE = 192
PATCH_PIXELS = CELL_PIXELS // 2  # easy-VQA's shapes stand anywhere: at whole cells they blur
MAX_POSITIONS = 4096


def shapes_config(vocab_size: int, ids: dict[str, int]) -> MllamaConfig:
    """The config; `ids` holds bos, eos, pad and image."""
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    text = MllamaTextConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=7,
        cross_attention_layers=[1, 3, 5],
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=512,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        tie_word_embeddings=False,
    )
    vision = MllamaVisionConfig(
        hidden_size=VISION_SIZE,
        num_hidden_layers=3,
        num_global_layers=1,
        attention_heads=6,
        intermediate_size=512,
        vision_output_dim=2 * VISION_SIZE,
        intermediate_layers_indices=[1],
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        max_num_tiles=1,
        supported_aspect_ratios=[[1, 1]],
    )
    return MllamaConfig(text_config=text, vision_config=vision, image_token_index=ids["image"])


@torch.no_grad()
def initialise_(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew, in place, from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    modules: dict[str, Any] = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if leaf == "bias":
            parameter.zero_()
        elif leaf in ("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_attn", "gate_ffn"):
            parameter.fill_(1.0)
        elif leaf == "gate":
            parameter.zero_()
        elif leaf == "class_embedding":
            parameter.normal_(0.0, 1.0, generator=generator)
        elif leaf == "embedding" and "gated_positional_embedding" in owner:
            _place_patches_(parameter, generator)
        elif isinstance(module, nn.Embedding):
            # Tile embeddings, all but unused with one tile, stay small; word embeddings are read
            # through a norm, so their scale only sets how fast they move.
            is_words = "embed_tokens" in owner
            parameter.normal_(0.0, 0.5 if is_words else 0.02, generator=generator)
        elif parameter.dim() >= 2:
            fan_in = parameter[0].numel()
            parameter.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
        else:
            parameter.fill_(1.0)  # norm weights


def _place_patches_(embedding: Tensor, generator: torch.Generator) -> None:
    """Position embeddings [1 + patches, D] of variance 1, most of it shared by the patches of a cell.

    So a place's words find its four patches by one key.
    """
    embedding.normal_(0.0, 0.5, generator=generator)
    cells = torch.empty(NUM_CELLS, embedding.shape[1]).normal_(
        0.0, math.sqrt(0.75), generator=generator
    )
    embedding[1:] += cells[cell_of_patches(math.isqrt(len(embedding) - 1))]


def write_start(folder: Path, tokenizer: Tokenizer, seed: int, *, sight_steps: int = 0) -> None:
    """Write the model that training starts from as an HF folder, with everything beside the weights.

    sight_steps: how long the vision tower is taught on its own first (sight.py)
    """
    from transformers import (
        GenerationConfig,
        MllamaForConditionalGeneration,
    )
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    names = {"bos": BOS, "eos": END_TURN, "pad": PAD, "image": IMAGE}
    vocab = tokenizer.get_vocab()
    ids = {name: vocab[token] for name, token in names.items()}
    model = MllamaForConditionalGeneration(shapes_config(tokenizer.get_vocab_size(), ids))
    initialise_(model, seed)
    if sight_steps:
        train_sight_(model, seed=seed, steps=sight_steps)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
    )
    model.save_pretrained(folder)
    images = MllamaImageProcessorPil(
        size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
        max_image_tiles=1,
    )
    # As published Mllama folders have it: the image processor's file names the processor's class.
    images.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["processor_class"] = "MllamaProcessor"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    as_transformers(tokenizer, MAX_POSITIONS).save_pretrained(folder)
    plan = json.dumps(SHAPES_PLAN.to_dict(), indent=2)
    (folder / "stage_plan.json").write_text(plan + "\n", encoding="utf-8")


def write_like(export: Path, model: Any, folder: Path) -> None:
    """Write `model` in bfloat16 with the export's other files beside it; whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(part)
    made = ("config.json", "*.safetensors*", "*.png", "*.jsonl")
    shutil.copytree(export, part, ignore=shutil.ignore_patterns(*made), dirs_exist_ok=True)
    os.replace(part, folder)
