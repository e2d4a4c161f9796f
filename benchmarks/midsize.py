"""The mid-size model: a real Mllama around SmolLM2's real text weights, 185 M parameters.

SmolLM2's 30 layers are the self-attention layers; six gated cross-attention layers stand between
them and a small vision tower feeds those. At zero gates, as HF initialises them, the text is SmolLM2's
own, exactly, whatever the image: real weights and real text through all of Mllama's code paths and
caches. It is no vision-language model.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.auto.tokenization_auto import AutoTokenizer

from stagebeam.benchmarks.smollm2 import convert

CROSS_LAYERS = (5, 11, 17, 23, 29, 35)
IMAGE_SIZE, PATCH_SIZE, MAX_TILES = 112, 14, 4
IMAGE_TOKEN = "<|image|>"
# SmolLM2's ChatML, with the image token where an image part stands.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cache_folder() -> Path:
    """Where built models are kept: $STAGEBEAM_CACHE, else ~/.cache/stagebeam."""
    return Path(os.environ.get("STAGEBEAM_CACHE") or Path.home() / ".cache" / "stagebeam")


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a HF folder, made on first use."""
    return _made("smollm2-135m", convert)


def midsize_folder() -> Path:
    """The mid-size Mllama as a HF folder, made on first use."""
    return _made("midsize-mllama", lambda folder: build_midsize(smollm2_folder(), folder))


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The cached folder; it appears whole or not at all, whoever else is making it."""
    folder = cache_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / name
            make(made)
            with suppress(OSError):  # another process was faster
                made.rename(folder)
    return folder


@torch.no_grad()
def build_midsize(smollm2: Path, folder: Path) -> None:
    """Write the model, its tokenizer and its processor's settings in HF's layout."""
    language = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    torch.manual_seed(0)  # the vision tower's and the cross layers' weights are drawn
    model = MllamaForConditionalGeneration(_config(language.config))
    decoder = model.model.language_model
    own = [layer for i, layer in enumerate(decoder.layers) if i not in CROSS_LAYERS]
    for layer, real in zip(own, language.model.layers, strict=True):
        layer.load_state_dict(real.state_dict())
    decoder.norm.load_state_dict(language.model.norm.state_dict())
    # The image token gets a real token's embedding: a random one is too short for float32.
    words = language.model.embed_tokens.weight
    decoder.embed_tokens.weight.copy_(torch.cat((words, words[:8])))
    model.lm_head.weight.copy_(language.lm_head.weight)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _write_processor(smollm2, folder)


def _config(text: object) -> MllamaConfig:
    names = (
        *("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads"),
        *("intermediate_size", "rms_norm_eps", "max_position_embeddings"),
        *("bos_token_id", "eos_token_id"),
    )
    kept = {name: getattr(text, name) for name in names}
    return MllamaConfig(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_global_layers": 2,
            "attention_heads": 4,
            "intermediate_size": 256,
            "vision_output_dim": 384,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "max_num_tiles": MAX_TILES,
            "intermediate_layers_indices": [1, 3],
        },
        text_config={
            **kept,
            "num_hidden_layers": text.num_hidden_layers + len(CROSS_LAYERS),  # type: ignore[attr-defined]
            "cross_attention_layers": list(CROSS_LAYERS),
            "rope_parameters": dict(text.rope_parameters),  # type: ignore[attr-defined]
            "pad_token_id": kept["eos_token_id"],
            "tie_word_embeddings": False,
        },
        image_token_index=kept["vocab_size"],
    )


def _write_processor(smollm2: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    settings = {
        "image_processor_type": "MllamaImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_pad", "do_rescale"), True),
        "do_resize": True,
        "image_mean": half,
        "image_std": half,
        "max_image_tiles": MAX_TILES,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}, indent=2) + "\n"
    )
