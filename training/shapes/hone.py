"""The fourth part of `stagebeam train shapes`: judging on the candidates that the model's own search meets.

Goes on from an export of the third part (deepen.py), in rounds. A round lets the model search answers
to training questions and learns to tell its own wrong candidates from the right text, beside drawn
pairs and answers; the rate falls to zero. The next round's candidates are those of the model so far.
Deterministic by seed; resumes from its last checkpoint.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from stagebeam.training.config import Phase, TrainConfig
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.check import ShapesCheck
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.mixture import DATA_SEED, Mixture, mixed_phase
from stagebeam.training.shapes.own_mistakes import collect_once
from stagebeam.training.trainer import Trainer

CHECK_SEED = 11
HONE: Mixture = {
    "answer": (2.4, 44),
    "text": (0.6, 60),
    "facts": (0.3, 128),
    "caption": (1.2, 80),
    "easy": (1.6, 128),
    "proof-caption": (0.6, 64),
    "proof-reasoning": (1.6, 24),
    "judge-fact": (0.3, 80),
    "judge-caption": (0.8, 32),
    "judge-summary": (0.8, 44),
    "judge-reasoning": (1.8, 18),
    "judge-conclusion": (0.4, 24),
    "judge-answer": (0.8, 12),
    "judge-sentence": (0.8, 20),
    "judge-own": (6, 18),
    "gate": (0.1, 48),
}
COMPARE: Mixture = {
    "answer": (1.5, 44),
    "easy": (0.8, 128),
    "proof-caption": (5, 80),
    "proof-reasoning": (4, 24),
    "judge-caption": (0.5, 32),
    "judge-summary": (0.4, 44),
    "judge-reasoning": (1.2, 18),
    "judge-answer": (0.4, 12),
    "judge-sentence": (0.4, 20),
    "judge-own": (2.5, 18),
}
WEIGH: Mixture = {
    "answer": (1.4, 44),
    "text": (0.4, 60),
    "facts": (0.3, 128),
    "caption": (0.6, 80),
    "easy": (3, 128),
    "proof-summary": (0.6, 64),
    "proof-caption": (2.5, 80),
    "proof-reasoning": (3.5, 24),
    "judge-fact": (0.2, 80),
    "judge-caption": (0.7, 32),
    "judge-summary": (1.4, 44),
    "judge-reasoning": (1.8, 18),
    "judge-conclusion": (0.4, 24),
    "judge-answer": (2, 12),
    "judge-sentence": (1, 20),
    "judge-own": (6, 18),
    "gate": (0.1, 48),
}
WRITE_TOO: Mixture = WEIGH | {
    "answer": (3, 44),
    "text": (0.7, 60),
    "facts": (0.5, 128),
    "caption": (1.2, 80),
    "easy": (2.5, 128),
}
QUESTIONS = (4000, 2400, 3000, 2000)  # searched for the mistakes of each round


def honing_phases(encoder: ChatEncoder, number: int, mistakes: Path) -> tuple[Phase, ...]:
    """The recipe of a round, 0-based; `mistakes` are those of the model that it starts from."""
    phase = partial(mixed_phase, encoder, mistakes=mistakes)
    if number == 0:
        return (phase("hone", HONE, steps=900, rate=8e-4, warmup=20, falls=True),)
    if number == 1:
        return (
            phase("compare", COMPARE, steps=420, rate=1e-3, warmup=20),
            phase("hone again", HONE, steps=500, rate=8e-4, falls=True),
        )
    if number == 2:
        return (
            phase("weigh", WEIGH, steps=600, rate=1e-3, warmup=20),
            phase("weigh again", WRITE_TOO, steps=800, rate=9e-4, falls=True),
        )
    return (phase("last words", WRITE_TOO, steps=500, rate=7e-4, warmup=20, falls=True),)


def hone_shapes(model: Path, output: Path, config: TrainConfig) -> Progress:
    """Train the export `model` of the third part on, or go on where `output` stands.

    Leaves each round's mistakes, checkpoints and metrics in output/round1 and so on, those of the last
    in `output`, and the result at output/final.
    """
    folders = [*(output / f"round{number}" for number in range(1, len(QUESTIONS))), output]
    progress = Progress()
    for number, folder in enumerate(folders):
        if folder == output or not (folder / "final").exists():
            progress = _hone_once(model, folder, config, number)
            if not progress.is_finished:
                break
        model = folder / "final"
    return progress


def _hone_once(model: Path, folder: Path, config: TrainConfig, number: int) -> Progress:
    mistakes = collect_once(
        model,
        folder / "mistakes.jsonl",
        seed=DATA_SEED + number,
        num_questions=QUESTIONS[number],
    )
    encoder = ChatEncoder(Tokenizer.from_file(str(model / "tokenizer.json")))
    phases = honing_phases(encoder, number, mistakes)
    return Trainer(model, folder, config, phases, eval_fn=ShapesCheck(CHECK_SEED)).train()
