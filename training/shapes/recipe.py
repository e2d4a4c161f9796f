"""How the bundled checkpoint is trained: `stagebeam train shapes`.

Phases are data. First the model learns to see (every place named, in large batches) and to reason
from given captions without images; then staged answers, easy-VQA and judging are mixed; at the end
the learning rate falls to zero. Deterministic by seed; resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Tokenizer

from stagebeam.training.config import Phase, Schedule, Source, TrainConfig
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.corpus import corpus_texts
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.model import write_start
from stagebeam.training.shapes.streams import EasyStream, ShapesStream
from stagebeam.training.shapes.tokenizer import MAX_VOCAB_SIZE, train_tokenizer
from stagebeam.training.trainer import Trainer

logger = logging.getLogger(__name__)

INIT_SEED = 0
DATA_SEED = 1
ORDER_SEED = 5
STREAM_SIZE = 200_000  # examples in an epoch of a stream; far more than a phase draws
CONFIG = TrainConfig(
    seed=ORDER_SEED,
    betas=(0.9, 0.98),
    max_grad_norm=1.0,
    save_interval=100,
    log_interval=10,
    num_workers=1,
)
# task: (share of the micro-batches, rows in one)
Mixture = dict[str, tuple[float, int]]
SEE: Mixture = {"places": (1, 96), "text": (1, 96)}
MIX: Mixture = {
    "answer": (3, 30),
    "text": (2, 40),
    "places": (1, 48),
    "easy": (1.5, 48),
    "judge-short": (2, 64),
    "judge-caption": (1.5, 40),
    "judge-summary": (0.5, 48),
    "judge-reasoning": (1, 26),
    "judge-conclusion": (0.5, 32),
    "gate": (0.5, 40),
}
SETTLE: Mixture = {
    "answer": (3.5, 30),
    "text": (0.5, 40),
    "easy": (1.5, 48),
    "judge-short": (0.5, 64),
    "judge-caption": (1.5, 40),
    "judge-summary": (0.5, 48),
    "judge-reasoning": (1.5, 26),
    "judge-conclusion": (0.7, 32),
    "judge-answer": (1, 16),
    "judge-sentence": (1, 28),
    "gate": (0.5, 40),
}


def phases(encoder: ChatEncoder) -> tuple[Phase, ...]:
    """The recipe: what is trained on, for how long, at which rate."""
    return (
        _phase(encoder, "see", SEE, steps=300, rate=1.5e-3, warmup=40),
        _phase(encoder, "mix", MIX, steps=1500, rate=1.5e-3),
        _phase(encoder, "settle", SETTLE, steps=1500, rate=1.2e-3, falls=True),
    )


def _phase(
    encoder: ChatEncoder,
    name: str,
    mixture: Mixture,
    *,
    steps: int,
    rate: float,
    warmup: int = 0,
    falls: bool = False,
) -> Phase:
    sources = tuple(
        Source(name=task, dataset=_dataset(encoder, task), weight=weight, batch_size=rows)
        for task, (weight, rows) in mixture.items()
    )
    schedule = Schedule(kind="cosine" if falls else "constant", warmup_steps=warmup)
    return Phase(
        name=name,
        sources=sources,
        steps=steps,
        learning_rate=rate,
        schedule=schedule,
        bucket_batches=16,
    )


def _dataset(encoder: ChatEncoder, task: str) -> ShapesStream | EasyStream:
    if task == "easy":
        return EasyStream(encoder, seed=DATA_SEED)
    return ShapesStream(task, encoder, seed=DATA_SEED, size=STREAM_SIZE)


def train_shapes(output: Path, *, config: TrainConfig = CONFIG) -> Progress:
    """Train the bundled checkpoint from nothing, or go on where `output` stands.

    Leaves the untrained model at output/start, checkpoints, metrics, and the result at output/final.
    """
    start = output / "start"
    if not (start / "model.safetensors").exists():
        logger.info("training the tokenizer and drawing the weights")
        write_start(start, train_tokenizer(corpus_texts(), MAX_VOCAB_SIZE), INIT_SEED)
    encoder = ChatEncoder(Tokenizer.from_file(str(start / "tokenizer.json")))
    return Trainer(start, output, config, phases(encoder)).train()
