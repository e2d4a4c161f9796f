"""Tiny random HF folders, their tokenizer trained on the spot, for the trainer's tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.engine.stages import LLAVA_COT_PLAN

SPECIAL = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|image|>",
    "<|pad|>",
)
CHAT_TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}"
    "{%- else %}{% for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|image|>' }}{% else %}{{- part['text'] | trim }}{% endif %}"
    "{%- endfor %}{% endif %}{{- '<|eot_id|>' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CORPUS = [
    "How many red circles are there? <SUMMARY> I count the circles. </SUMMARY>",
    "<CAPTION> two red circles </CAPTION> <REASONING> one, two </REASONING>",
    "<CONCLUSION> 2 </CONCLUSION> user assistant system what colour is the square",
]
IMAGE_SIZE = 16


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 entries with Llama-3's special tokens and template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[3],
        pad_token=SPECIAL[5],
        additional_special_tokens=[SPECIAL[1], SPECIAL[2], SPECIAL[4]],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_mllama(
    folder: Path, *, max_num_tiles: int = 2, seed: int = 0, hidden_size: int = 32
) -> Path:
    """A random Mllama of hidden size 32: three text layers (one cross), two vision layers."""
    tokenizer = save_tokenizer(folder)
    ratios = [[w, h] for w in range(1, 5) for h in range(1, 5) if w * h <= max_num_tiles]
    config = MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 32,
            "vision_output_dim": 32,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "max_num_tiles": max_num_tiles,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": ratios,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "cross_attention_layers": [1],
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(config)
    open_gates(model)
    model.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    MllamaImageProcessorPil(size=size, max_image_tiles=max_num_tiles).save_pretrained(folder)
    (folder / "stage_plan.json").write_text(json.dumps(LLAVA_COT_PLAN.to_dict()))
    return folder


def save_llama(folder: Path, *, tie: bool = False) -> Path:
    """A random Llama of hidden size 32 and two layers."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def open_gates(model: torch.nn.Module) -> None:
    """Give every gate a random value: HF starts them at 0, where the image has no effect."""
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            sign = 1.0 if torch.rand(1) < 0.5 else -1.0
            parameter.fill_(sign * float(torch.empty(1).uniform_(0.3, 1.0)))
        elif parameter.dim() >= 2:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
