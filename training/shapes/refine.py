"""The second part of `stagebeam train shapes`: what answers and verdicts still got wrong.

Goes on from an export of the first part (recipe.py). The vision tower learns lone shapes anew; the
facts that reasoning ends with are learnt on their own, at a high rate; then answers and judging,
every pair in both orders, are mixed, and in the last phase the rate falls to zero. Phases are data; deterministic by seed; resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from tokenizers import Tokenizer

from stagebeam.training.config import Phase, TrainConfig
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.check import ShapesCheck
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.lone_sight import train_lone_sight_
from stagebeam.training.shapes.mixture import Mixture, mixed_phase
from stagebeam.training.shapes.model import write_like
from stagebeam.training.trainer import Trainer
from stagebeam.training.world import made_once

logger = logging.getLogger(__name__)

SIGHT_SEED, SIGHT_STEPS = 3, 300
CHECK_SEED = 11
FACTS: Mixture = {
    "facts": (2, 64),
    "judge-fact": (2, 40),
    "text": (1, 32),
    "answer": (1, 20),
    "easy": (1, 40),
}
SUMS: Mixture = {"facts": (5, 96), "judge-fact": (1, 48)}
JUDGE: Mixture = {
    "answer": (2.5, 24),
    "text": (1.5, 32),
    "facts": (0.7, 64),
    "judge-fact": (1.5, 40),
    "easy": (1.2, 48),
    "judge-short": (1, 32),
    "judge-caption": (1.2, 20),
    "judge-summary": (0.6, 24),
    "judge-reasoning": (2, 11),
    "judge-conclusion": (1, 16),
    "judge-answer": (1, 8),
    "judge-sentence": (1, 14),
    "gate": (0.2, 40),
}
SETTLE: Mixture = {
    "answer": (4, 24),
    "caption": (2, 48),
    "text": (0.8, 32),
    "facts": (0.6, 64),
    "judge-fact": (0.7, 40),
    "easy": (1.5, 48),
    "judge-short": (0.7, 32),
    "judge-caption": (0.9, 20),
    "judge-summary": (0.5, 24),
    "judge-reasoning": (1.6, 11),
    "judge-conclusion": (0.7, 16),
    "judge-answer": (1, 8),
    "judge-sentence": (0.8, 14),
    "gate": (0.2, 40),
}


def refining_phases(encoder: ChatEncoder) -> tuple[Phase, ...]:
    """The second part's recipe."""
    return (
        mixed_phase(encoder, "facts", FACTS, steps=120, rate=1e-3, warmup=20),
        mixed_phase(encoder, "sums", SUMS, steps=116, rate=1.5e-3),
        mixed_phase(encoder, "judge", JUDGE, steps=260, rate=1e-3),
        mixed_phase(encoder, "settle", SETTLE, steps=460, rate=1e-3, falls=True),
    )


def refine_shapes(model: Path, output: Path, config: TrainConfig) -> Progress:
    """Train the export `model` of the first part on, or go on where `output` stands.

    Leaves the model that it began with at output/refined-start, checkpoints, metrics, and the result
    at output/final.
    """
    start = output / "refined-start"
    made_once(start, lambda: write_refined_start(model, start))
    encoder = ChatEncoder(Tokenizer.from_file(str(start / "tokenizer.json")))
    check = ShapesCheck(CHECK_SEED)
    return Trainer(start, output, config, refining_phases(encoder), eval_fn=check).train()


def write_refined_start(model: Path, folder: Path) -> None:
    """The export `model` with its vision tower taught lone shapes, in bfloat16; whole or not at all."""
    from transformers import MllamaForConditionalGeneration

    logger.info("the vision tower's second lesson")
    taught = MllamaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    train_lone_sight_(taught, seed=SIGHT_SEED, steps=SIGHT_STEPS)
    write_like(model, taught, folder)
