"""How the bundled checkpoint is trained: `stagebeam train shapes`.

Phases are data. The vision tower learns on its own to see (sight.py); then the text layers learn to
look where they are told, on short questions in large batches; then to write staged answers; then
judging is mixed in. What staged answers alone teach slowly (captions that skip empty places, matching
an object with a description) is practised apart, and mixed again. The model's own mistakes are sampled
for this part's last phase, in which the learning rate falls to zero; refine.py is the second part,
deepen.py the third, hone.py the fourth. Deterministic by seed; resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Tokenizer

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.config import Phase, TrainConfig
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.check import ShapesCheck
from stagebeam.training.shapes.corpus import corpus_texts
from stagebeam.training.shapes.deepen import (
    NEW_LAYERS,
    SECOND_LAYERS,
    deepen_shapes,
    num_text_layers,
)
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.hone import hone_shapes
from stagebeam.training.shapes.mixture import DATA_SEED, Mixture, mixed_phase
from stagebeam.training.shapes.model import write_start
from stagebeam.training.shapes.own_mistakes import collect_once
from stagebeam.training.shapes.refine import refine_shapes
from stagebeam.training.shapes.tokenizer import MAX_VOCAB_SIZE, train_tokenizer
from stagebeam.training.trainer import Trainer
from stagebeam.training.world import made_once

logger = logging.getLogger(__name__)

INIT_SEED = 0
ORDER_SEED = 5
CHECK_SEED = 11
SIGHT_STEPS = 700
MISTAKE_QUESTIONS = 480
CONFIG = TrainConfig(
    seed=ORDER_SEED,
    precision="autocast",
    betas=(0.9, 0.98),
    max_grad_norm=1.0,
    save_interval=100,
    eval_interval=250,
    log_interval=10,
    num_workers=1,
)
LOOK: Mixture = {"place": (1, 128), "places": (2, 64)}
LEARN: Mixture = {
    "places": (1, 64),
    "text": (2, 40),
    "answer": (2, 26),
    "easy": (1, 48),
    "judge-short": (1.5, 32),
}
MIX: Mixture = {
    "answer": (3, 26),
    "text": (1.5, 40),
    "places": (1, 64),
    "easy": (1, 48),
    "judge-short": (1, 32),
    "judge-caption": (1.5, 20),
    "judge-summary": (0.5, 24),
    "judge-reasoning": (1.5, 11),
    "judge-conclusion": (0.5, 16),
    "judge-answer": (0.5, 8),
    "judge-sentence": (0.5, 14),
    "gate": (0.5, 40),
}
PRACTISE: Mixture = {
    "caption": (2.5, 96),
    "match": (1.5, 80),
    "text": (2, 40),
    "answer": (1.5, 26),
    "places": (0.5, 64),
    "easy": (0.5, 48),
    "judge-short": (0.5, 32),
    "judge-caption": (0.5, 20),
}
REHEARSE: Mixture = {
    "caption": (2.5, 96),
    "match": (1, 64),
    "text": (3, 40),
    "answer": (2, 26),
    "easy": (0.5, 48),
    "judge-short": (0.5, 32),
    "judge-caption": (1, 20),
    "judge-reasoning": (1, 11),
}
SETTLE: Mixture = {
    "answer": (3.5, 26),
    "text": (0.5, 40),
    "caption": (2, 96),
    "places": (0.5, 64),
    "easy": (1, 48),
    "judge-own": (1.5, 16),
    "judge-short": (0.5, 32),
    "judge-caption": (1.5, 20),
    "judge-summary": (0.5, 24),
    "judge-reasoning": (1.5, 11),
    "judge-conclusion": (0.7, 16),
    "judge-answer": (1, 8),
    "judge-sentence": (1, 14),
    "gate": (0.5, 40),
}


def phases(encoder: ChatEncoder, mistakes: Path | None = None) -> tuple[Phase, ...]:
    """The recipe: what is trained on, for how long, at which rate.

    mistakes: the model's own (own_mistakes.py); without them the last phase is left out
    """
    found = (
        mixed_phase(encoder, "look", LOOK, steps=250, rate=1.5e-3, warmup=40),
        mixed_phase(encoder, "learn", LEARN, steps=500, rate=1.5e-3),
        mixed_phase(encoder, "judge", MIX, steps=363, rate=1.5e-3),
        mixed_phase(encoder, "practise", PRACTISE, steps=350, rate=1.5e-3),
        mixed_phase(encoder, "mix", MIX, steps=450, rate=1.5e-3),
        mixed_phase(encoder, "rehearse", REHEARSE, steps=300, rate=1.5e-3),
    )
    if mistakes is None:
        return found
    settle = mixed_phase(
        encoder, "settle", SETTLE, steps=1200, rate=1.2e-3, falls=True, mistakes=mistakes
    )
    return (*found, settle)


def train_shapes(
    output: Path, *, model: Path | None = None, config: TrainConfig = CONFIG
) -> Progress:
    """Train the bundled checkpoint, or go on where `output` stands; the result is output/final.

    model: an export of the second part (in seven layers) or the third (in ten) to go on from; None
           begins with nothing. Earlier parts are trained in output/first and so on
    """
    first, second, third = (output / name for name in ("first", "second", "third"))
    if model is None:
        progress = _train_first_part(first, config)
        if progress.is_finished:
            progress = refine_shapes(first / "final", second, config)
        if not progress.is_finished:
            return progress
        model = second / "final"
    layers = num_text_layers(model)
    if layers not in (SECOND_LAYERS, SECOND_LAYERS + NEW_LAYERS):
        raise InvalidInputError(
            f"{model} must be an export of the second part, with {SECOND_LAYERS} text layers, or of "
            f"the third, with {SECOND_LAYERS + NEW_LAYERS}; got {layers}"
        )
    if layers == SECOND_LAYERS:
        progress = deepen_shapes(model, third, config)
        if not progress.is_finished:
            return progress
        model = third / "final"
    return hone_shapes(model, output, config)


def _train_first_part(output: Path, config: TrainConfig) -> Progress:
    """Leaves the untrained model at output/start, checkpoints, metrics, the model's own mistakes, and
    the export at output/final."""
    start, mistakes = output / "start", output / "mistakes.jsonl"
    made_once(start / "model.safetensors", lambda: _write_first_start(start))
    encoder = ChatEncoder(Tokenizer.from_file(str(start / "tokenizer.json")))
    check = ShapesCheck(CHECK_SEED)
    if not mistakes.exists():
        progress = Trainer(start, output, config, phases(encoder), eval_fn=check).train()
        if not progress.is_finished:
            return progress
        collect_once(output / "final", mistakes, seed=DATA_SEED, num_questions=MISTAKE_QUESTIONS)
    return Trainer(start, output, config, phases(encoder, mistakes), eval_fn=check).train()


def _write_first_start(folder: Path) -> None:
    logger.info("training the tokenizer and the vision tower's first lesson")
    tokenizer = train_tokenizer(corpus_texts(), MAX_VOCAB_SIZE)
    write_start(folder, tokenizer, INIT_SEED, sight_steps=SIGHT_STEPS)
