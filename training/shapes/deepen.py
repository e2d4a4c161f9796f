"""The third part of `stagebeam train shapes`: a deeper model, and judging on top of what it would write.

Goes on from an export of the second part (refine.py). Three self-attention layers are added at the
end that change nothing at first. Phases are data; deterministic by seed; resumes from its last
checkpoint.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from stagebeam.training.config import Phase, TrainConfig
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.check import ShapesCheck
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.mixture import DATA_SEED, Mixture, mixed_phase
from stagebeam.training.shapes.model import write_like
from stagebeam.training.shapes.own_mistakes import collect_once
from stagebeam.training.trainer import Trainer
from stagebeam.training.world import made_once

SECOND_LAYERS, NEW_LAYERS = 7, 3
GROW_SEED = 17
CHECK_SEED = 11
MISTAKE_QUESTIONS = 400
REWORD: Mixture = {
    "answer": (4, 32),
    "text": (2, 40),
    "caption": (1, 64),
    "facts": (0.7, 64),
    "easy": (2, 64),
}
JUDGE: Mixture = {
    "answer": (2.2, 44),
    "text": (0.8, 60),
    "facts": (0.6, 128),
    "caption": (0.6, 80),
    "easy": (1.6, 128),
    "judge-fact": (1.2, 80),
    "judge-short": (0.6, 56),
    "judge-caption": (1.2, 32),
    "judge-summary": (0.6, 44),
    "judge-reasoning": (2, 18),
    "judge-conclusion": (0.8, 24),
    "judge-answer": (1, 12),
    "judge-sentence": (0.8, 20),
    "gate": (0.1, 48),
    "judge-own": (1.2, 18),
}
PROOFREAD: Mixture = {
    "answer": (2, 44),
    "text": (0.7, 60),
    "facts": (0.7, 128),
    "caption": (0.7, 80),
    "easy": (1.6, 128),
    "proof-fact": (1.5, 64),
    "proof-caption": (1.5, 64),
    "proof-reasoning": (2, 24),
    "judge-fact": (0.7, 80),
    "judge-short": (0.4, 56),
    "judge-caption": (0.7, 32),
    "judge-summary": (0.5, 44),
    "judge-reasoning": (1, 18),
    "judge-conclusion": (0.7, 24),
    "judge-answer": (0.7, 12),
    "judge-sentence": (0.6, 20),
    "judge-own": (0.8, 18),
    "gate": (0.1, 48),
}
SETTLE: Mixture = {
    "answer": (3, 44),
    "text": (0.8, 60),
    "facts": (0.5, 128),
    "caption": (0.8, 80),
    "easy": (1.8, 128),
    "proof-fact": (0.7, 64),
    "proof-caption": (0.8, 64),
    "proof-reasoning": (1.8, 24),
    "judge-fact": (0.7, 80),
    "judge-short": (0.4, 56),
    "judge-caption": (1, 32),
    "judge-summary": (0.6, 44),
    "judge-reasoning": (1.6, 18),
    "judge-conclusion": (0.8, 24),
    "judge-answer": (1.2, 12),
    "judge-sentence": (0.9, 20),
    "judge-own": (1, 18),
    "gate": (0.1, 48),
}
LAST: Mixture = {
    "answer": (3, 44),
    "text": (0.8, 60),
    "facts": (0.5, 128),
    "caption": (0.5, 80),
    "easy": (1.8, 128),
    "proof-fact": (0.5, 64),
    "proof-caption": (0.6, 64),
    "proof-reasoning": (1.5, 24),
    "judge-fact": (0.7, 80),
    "judge-short": (0.3, 56),
    "judge-caption": (1, 32),
    "judge-summary": (0.7, 44),
    "judge-reasoning": (2.4, 18),
    "judge-conclusion": (0.8, 24),
    "judge-answer": (1.8, 12),
    "judge-sentence": (1.5, 20),
    "judge-own": (1.2, 18),
    "gate": (0.1, 48),
}


def reword_phase(encoder: ChatEncoder) -> Phase:
    return mixed_phase(encoder, "reword", REWORD, steps=400, rate=1e-3, warmup=30)


def judging_phases(encoder: ChatEncoder, mistakes: Path) -> tuple[Phase, ...]:
    """The third part's recipe after `reword_phase`; `mistakes` are the reworded model's own."""
    return (
        mixed_phase(encoder, "verify", JUDGE, steps=694, rate=1e-3, warmup=30, mistakes=mistakes),
        mixed_phase(encoder, "proofread", PROOFREAD, steps=450, rate=1e-3, mistakes=mistakes),
        mixed_phase(
            encoder, "settle", SETTLE, steps=1050, rate=1e-3, falls=True, mistakes=mistakes
        ),
        mixed_phase(encoder, "last", LAST, steps=420, rate=5e-4, falls=True, mistakes=mistakes),
    )


def deepen_shapes(model: Path, output: Path, config: TrainConfig) -> Progress:
    """Train the export `model` of the second part on, or go on where `output` stands.

    Leaves the model that it began with at output/deepened-start, the reworded one and its mistakes in
    output/reword, checkpoints, metrics, and the result at output/final.
    """
    start, reword = output / "deepened-start", output / "reword"
    made_once(start, lambda: write_deepened_start(model, start))
    encoder = ChatEncoder(Tokenizer.from_file(str(start / "tokenizer.json")))
    check = ShapesCheck(CHECK_SEED)
    if not (reword / "final").exists():
        progress = Trainer(start, reword, config, (reword_phase(encoder),), eval_fn=check).train()
        if not progress.is_finished:
            return progress
    mistakes = collect_once(
        reword / "final",
        reword / "mistakes.jsonl",
        seed=DATA_SEED,
        num_questions=MISTAKE_QUESTIONS,
    )
    phases = judging_phases(encoder, mistakes)
    return Trainer(reword / "final", output, config, phases, eval_fn=check).train()


def num_text_layers(model: Path) -> int:
    """Of an export, as its config says."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    return int(config.text_config.num_hidden_layers)


def write_deepened_start(model: Path, folder: Path) -> None:
    """The export `model` with NEW_LAYERS more text layers, whole or not at all; its answers are the
    same, bit for bit."""
    from transformers import AutoConfig, MllamaForConditionalGeneration

    config = AutoConfig.from_pretrained(model)
    config.text_config.num_hidden_layers += NEW_LAYERS
    deeper = MllamaForConditionalGeneration.from_pretrained(
        model, config=config, dtype=torch.float32
    )
    layers = deeper.model.language_model.layers[-NEW_LAYERS:]
    draw_silent_(layers, torch.Generator().manual_seed(GROW_SEED))
    write_like(model, deeper, folder)


@torch.no_grad()
def draw_silent_(layers: nn.Module, generator: torch.Generator) -> None:
    """Draw the layers' weights, at 1/sqrt(fan_in), in place; what they add to the residual is 0."""
    for name, parameter in layers.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0)
        elif "o_proj" in name or "down_proj" in name:
            parameter.zero_()
        else:
            parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
