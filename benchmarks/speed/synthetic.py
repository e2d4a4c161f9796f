"""Small Llama checkpoints of any size with drawn weights: for calibration and for sweeps of sizes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSize:
    """A Llama's sizes; heads are 64 wide, three query heads share a KV head."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int = 16384


def write_synthetic(size: SyntheticSize, folder: Path) -> Path:
    """Write the checkpoint in HF's layout with the bundled tokenizer; ids past it have no text."""
    heads = size.hidden_size // 64
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.hidden_size * 8 // 3 // 64 * 64,
        num_hidden_layers=size.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3),
        max_position_embeddings=size.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=5,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED_CHECKPOINT / name, folder / name)
    return folder
