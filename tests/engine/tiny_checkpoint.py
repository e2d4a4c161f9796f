"""Tiny random checkpoints whose samples look like staged answers, and their recomputation by HF.

The weights are random, so every logit depends on the whole context and on the image; only the
token's class (which stage's text it belongs to, whether it begins a closing tag...) has dimensions
of its own, which the layers read but do not write and which the head turns into likely successors.
So stages mostly end at their tag, and sometimes at another tag, an end of sequence or the limit.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stagebeam.engine.models.processor import PreparedImage
from stagebeam.engine.stages import JudgePrompts, Stage, StagePlan

SPECIALS = ("<|bos|>", "<|start|>", "<|eot|>", "<|image|>", "<|pad|>")
TAGS = "SCRF"
END_OF_TAG = (">\n", ">.", "> ", ">")  # a stage's last token: it tells the stages apart
TEXTS = (  # a stage's own tokens
    ["a", "b", "c", "d", "e", "f", ",", ",n", ",y", "a1", "a2"],
    ["g", "h", "i", "j", "k", "l", ";", "g1", "g2"],
    ["m", "n", "o", "p", "q", "r", ":", "m1", "m2"],
    ["s", "t", "u", "v", "w", "x", "_", "s1", "s2"],
)
CHARACTERS = ("é", "π", "ж", "🙂")  # of several tokens each
HIDDEN = 48
TEMPLATE = (
    "<|bos|>{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|image|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
PLAN = StagePlan(
    stages=(
        Stage(name="summary", tag="S", criterion="plans"),
        Stage(name="caption", tag="C", criterion="describes"),
        Stage(name="reasoning", tag="R", criterion="reasons", hints=("caption",), has_gate=True),
        Stage(name="final", tag="F", criterion="answers", hints=("caption", "reasoning")),
    ),
    prompts=JudgePrompts(
        pair="{criterion} {question} {hint}[{first}] [{second}]",
        hint="{name}={text} ",
        verdict="{choice}.",
        gate="{hint}{reasoning}?",
        gate_verdict="{choice}.",
        gate_words=("y", "n"),
        answer_criterion="is better",
        sentence_criterion="goes on better",
    ),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, the merges that the grammar needs, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    wanted = ["</", *[f"</{tag}" for tag in TAGS], *[f"<{tag}" for tag in TAGS]]
    wanted += [f"<{tag}>" for tag in TAGS]
    wanted += [text for text in (*END_OF_TAG, *chain(*TEXTS)) if len(text) > 1]
    spell = {"\n": "Ċ", " ": "Ġ"}
    pieces = ["".join(spell.get(c, c) for c in text) for text in wanted]
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *pieces])}
    merges = [(piece[:-1], piece[-1]) for piece in pieces]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eot|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


def class_logits(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int | None], Tensor]:
    """(a token's class or None, [num_classes, vocab_size] logits of a class's successors)."""
    size, rows = len(tokenizer), []
    class_of: list[int | None] = [None] * size

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def add(members: list[int], successors: dict[int, float]) -> None:
        for token in members:
            class_of[token] = len(rows)
        rows.append(torch.full((size,), -14.0))
        for token, logit in successors.items():
            rows[-1][token] = logit

    close = [ids(f"</{tag}")[0] for tag in TAGS]
    opens = [ids(f"<{tag}>")[0] for tag in TAGS]
    add(ids("\n"), {opens[0]: 0.0})
    for k, tag in enumerate(TAGS):
        spelled = ids(CHARACTERS[k])
        own = [ids(text)[0] for text in TEXTS[k]]
        likely = dict.fromkeys([*own, spelled[0]], 0.0)
        endings = {**dict.fromkeys(close, -5.0), close[k]: 0.2, tokenizer.eos_token_id: -3.5}
        add([*own, opens[k], spelled[-1]], likely | endings)
        for byte, following in pairwise(spelled):
            add([byte], {following: 0.0})
        end = ids(f"</{tag}{END_OF_TAG[k]}")[1]
        add([close[k]], {end: 0.0})
        add([end], {opens[min(k + 1, 3)]: 0.0})
    return class_of, torch.stack(rows)


def fill_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Random weights, gates in +-[0.3, 1], and the classes' own dimensions."""
    class_of, successors = class_logits(tokenizer)
    num_classes = len(successors)
    strength = 8.0
    for name, weight in model.named_parameters():
        # By name, so that the order of HF's modules does not matter.
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith(("gate", "gate_attn", "gate_ffn")):
            weight.data = noise.sign() * (0.3 + 0.7 * torch.rand(1, generator=generator))
        elif "norm" in name and name.endswith("weight"):
            weight.data = torch.ones_like(noise)
        elif "embed_tokens" in name:
            weight.data = noise
            weight.data[:, :num_classes] = 0
            for token, number in enumerate(class_of):
                if number is not None:
                    weight.data[token, number] = strength
        elif "lm_head" in name:
            weight.data = 0.15 * noise
        else:
            weight.data = (0.3 if weight.ndim < 2 else 1.5 * weight.shape[-1] ** -0.5) * noise
        if "vision" not in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data[:num_classes] = 0
    # What the final norm leaves of a class's dimension, on some text.
    sample = torch.tensor([[token for token, number in enumerate(class_of) if number is not None]])
    with torch.inference_mode():
        left = model.model(sample).last_hidden_state[0, :, :num_classes].amax(-1).mean()
    model.lm_head.weight.data[:, :num_classes] = successors.T / left


@dataclass(frozen=True)
class TinyCheckpoint:
    """A saved checkpoint and the HF model it was saved from."""

    folder: Path
    hf: PreTrainedModel

    @torch.inference_mode()
    def logits(self, token_ids: tuple[int, ...], image: PreparedImage | None = None) -> Tensor:
        """Full recompute by HF: [len(token_ids), vocab_size]."""
        inputs: dict[str, Tensor] = {"input_ids": torch.tensor([token_ids])}
        if image is not None:
            length, max_tiles = len(token_ids), len(image.pixel_values)
            seen = torch.zeros(1, length, 1, max_tiles, dtype=torch.long)
            position = token_ids.index(self.hf.config.image_token_index)
            seen[:, position:, :, : image.num_tiles] = 1
            inputs |= {
                "pixel_values": image.pixel_values[None, None],
                "aspect_ratio_ids": torch.tensor([[image.aspect_ratio_id]]),
                "aspect_ratio_mask": image.aspect_ratio_mask[None, None],
                "cross_attention_mask": seen,
            }
        return self.hf(**inputs).logits[0]


def _text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def make_mllama(folder: Path, seed: int = 0) -> TinyCheckpoint:
    """A vision checkpoint of two self-attention and two cross-attention layers."""
    tokenizer = make_tokenizer()
    config = MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 24,
            "vision_output_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [0],
        },
        text_config={
            **_text_sizes(tokenizer),
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    preprocessor = {
        "image_processor_type": "MllamaImageProcessor",
        "size": {"height": 28, "width": 28},
        "max_image_tiles": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return _save(folder, MllamaForConditionalGeneration(config), tokenizer, seed)


def make_llama(folder: Path, seed: int = 0) -> TinyCheckpoint:
    """A text-only checkpoint."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(**_text_sizes(tokenizer), num_hidden_layers=2)
    return _save(folder, LlamaForCausalLM(config), tokenizer, seed)


def _save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> TinyCheckpoint:
    model = model.eval()
    fill_weights(model, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "stage_plan.json").write_text(json.dumps(PLAN.to_dict()))
    return TinyCheckpoint(folder, model)
