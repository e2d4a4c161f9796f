"""How the bundled checkpoint is trained: `stagebeam train shapes`.

Phases are data. The vision tower learns on its own to see (sight.py); then the text layers learn to
look where they are told, on short questions in large batches; then to write staged answers; then
judging is mixed in. What staged answers alone teach slowly (captions that skip empty places, matching
an object with a description) is practised apart, and mixed again. The model's own mistakes are sampled
for the last phase, in which the learning rate falls to zero. Deterministic by seed; resumes from its
last checkpoint.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from stagebeam.training.config import Phase, Schedule, Source, TrainConfig
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.check import ShapesCheck
from stagebeam.training.shapes.corpus import corpus_texts
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.model import write_start
from stagebeam.training.shapes.own_mistakes import OwnMistakes, collect_mistakes
from stagebeam.training.shapes.streams import EasyStream, ShapesStream
from stagebeam.training.shapes.tokenizer import MAX_VOCAB_SIZE, train_tokenizer
from stagebeam.training.trainer import Trainer

logger = logging.getLogger(__name__)

INIT_SEED = 0
DATA_SEED = 1
ORDER_SEED = 5
CHECK_SEED = 11
SIGHT_STEPS = 700
STREAM_SIZE = 200_000  # examples in an epoch of a stream; far more than a phase draws
MISTAKE_QUESTIONS = 480
CONFIG = TrainConfig(
    seed=ORDER_SEED,
    betas=(0.9, 0.98),
    max_grad_norm=1.0,
    save_interval=100,
    eval_interval=250,
    log_interval=10,
    num_workers=1,
)
# task: (share of the micro-batches, rows in one)
Mixture = dict[str, tuple[float, int]]
LOOK: Mixture = {"place": (1, 128), "places": (2, 64)}
LEARN: Mixture = {
    "places": (1, 64),
    "text": (2, 40),
    "answer": (2, 26),
    "easy": (1, 48),
    "judge-short": (1.5, 64),
}
MIX: Mixture = {
    "answer": (3, 26),
    "text": (1.5, 40),
    "places": (1, 64),
    "easy": (1, 48),
    "judge-short": (1, 64),
    "judge-caption": (1.5, 40),
    "judge-summary": (0.5, 48),
    "judge-reasoning": (1.5, 22),
    "judge-conclusion": (0.5, 32),
    "judge-answer": (0.5, 16),
    "judge-sentence": (0.5, 28),
    "gate": (0.5, 40),
}
PRACTISE: Mixture = {
    "caption": (2.5, 96),
    "match": (1.5, 80),
    "text": (2, 40),
    "answer": (1.5, 26),
    "places": (0.5, 64),
    "easy": (0.5, 48),
    "judge-short": (0.5, 64),
    "judge-caption": (0.5, 40),
}
REHEARSE: Mixture = {
    "caption": (2.5, 96),
    "match": (1, 64),
    "text": (3, 40),
    "answer": (2, 26),
    "easy": (0.5, 48),
    "judge-short": (0.5, 64),
    "judge-caption": (1, 40),
    "judge-reasoning": (1, 22),
}
SETTLE: Mixture = {
    "answer": (3.5, 26),
    "text": (0.5, 40),
    "caption": (2, 96),
    "places": (0.5, 64),
    "easy": (1, 48),
    "judge-own": (1.5, 32),
    "judge-short": (0.5, 64),
    "judge-caption": (1.5, 40),
    "judge-summary": (0.5, 48),
    "judge-reasoning": (1.5, 22),
    "judge-conclusion": (0.7, 32),
    "judge-answer": (1, 16),
    "judge-sentence": (1, 28),
    "gate": (0.5, 40),
}


def phases(encoder: ChatEncoder, mistakes: Path | None = None) -> tuple[Phase, ...]:
    """The recipe: what is trained on, for how long, at which rate.

    mistakes: the model's own (own_mistakes.py); without them the last phase is left out
    """
    found = (
        _phase(encoder, "look", LOOK, steps=250, rate=1.5e-3, warmup=40),
        _phase(encoder, "learn", LEARN, steps=500, rate=1.5e-3),
        _phase(encoder, "judge", MIX, steps=363, rate=1.5e-3),
        _phase(encoder, "practise", PRACTISE, steps=350, rate=1.5e-3),
        _phase(encoder, "mix", MIX, steps=450, rate=1.5e-3),
        _phase(encoder, "rehearse", REHEARSE, steps=300, rate=1.5e-3),
    )
    if mistakes is None:
        return found
    own = Source(
        name="judge-own",
        dataset=OwnMistakes(mistakes, encoder, seed=DATA_SEED),
        weight=SETTLE["judge-own"][0],
        batch_size=SETTLE["judge-own"][1],
    )
    drawn = {task: share for task, share in SETTLE.items() if task != own.name}
    settle = _phase(encoder, "settle", drawn, steps=1200, rate=1.2e-3, falls=True)
    return (*found, replace(settle, sources=(*settle.sources, own)))


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

    Leaves the untrained model at output/start, checkpoints, metrics, the model's own mistakes, and the
    result at output/final.
    """
    start, mistakes = output / "start", output / "mistakes.jsonl"
    if not (start / "model.safetensors").exists():
        logger.info("training the tokenizer and the vision tower's first lesson")
        tokenizer = train_tokenizer(corpus_texts(), MAX_VOCAB_SIZE)
        write_start(start, tokenizer, INIT_SEED, sight_steps=SIGHT_STEPS)
    encoder = ChatEncoder(Tokenizer.from_file(str(start / "tokenizer.json")))
    check = ShapesCheck(CHECK_SEED)
    if not mistakes.exists():
        progress = Trainer(start, output, config, phases(encoder), eval_fn=check).train()
        if not progress.is_finished:
            return progress
        collect_mistakes(
            output / "final", mistakes, seed=DATA_SEED, num_questions=MISTAKE_QUESTIONS
        )
    return Trainer(start, output, config, phases(encoder, mistakes), eval_fn=check).train()
