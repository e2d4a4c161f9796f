"""The model's own mistakes as judge examples: samples of an earlier export that are wrong.

Drawn mistakes (mistakes.py) are spread evenly; a model's own are not. Each is a stage of a sampled
answer whose stages before it are right, beside the right text of that stage. Kept as JSON lines, so
that a resumed training reads what the first part sampled.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams, SearchParams
from stagebeam.training.shapes.annotate import StagedAnswer, annotate
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.judge_pairs import JudgePair, stage_hints
from stagebeam.training.shapes.questions import KINDS, sample_question
from stagebeam.training.shapes.scene import Scene, Thing, draw_scene, sample_scene
from stagebeam.training.shapes.streams import Examples, pair_examples

logger = logging.getLogger(__name__)

TEMPERATURES = (1.0, 1.3, 1.6)
NUM_SAMPLES = 2  # of a question at each temperature
STAGES = ("summary", "caption", "reasoning", "conclusion")


def collect_mistakes(folder: Path, path: Path, *, seed: int, num_questions: int) -> int:
    """Sample answers of the export `folder` to train questions; write the pairs to `path`, atomically.

    Returns the number of pairs.
    """
    rngs = [random.Random(f"{seed}/own/{index}") for index in range(num_questions)]
    scenes = [sample_scene(rng, "train") for rng in rngs]
    questions = [
        sample_question(rng, scene, KINDS[index % len(KINDS)])
        for index, (rng, scene) in enumerate(zip(rngs, scenes, strict=True))
    ]
    images = [draw_scene(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
    pairs: dict[str, None] = {}
    with Engine(folder) as engine:
        for turn, temperature in enumerate(TEMPERATURES * NUM_SAMPLES):
            sampling = SamplingParams(temperature=temperature, top_p=1.0, top_k=0, max_tokens=256)
            first_seed = turn * num_questions
            asked = [
                {
                    "question": one.text,
                    "image": image,
                    "sampling": replace(sampling, seed=first_seed + index),
                }
                for index, (one, image) in enumerate(zip(questions, images, strict=True))
            ]
            answers = engine.answer_many(asked, search=SearchParams(strategy="single"))
            for scene, question, answer, rng in zip(scenes, questions, answers, rngs, strict=True):
                said = {stage.name: stage.text.strip() for stage in answer.stages}
                found = _first_mistake(said, annotate(question, scene))
                if found is not None:
                    name, wrong, right = found
                    pair = JudgePair(
                        name,
                        question.text,
                        stage_hints(name, right),
                        getattr(right, name),
                        wrong,
                        rng.random() < 0.5,
                    )
                    row = {"scene": [asdict(thing) for thing in scene], "pair": asdict(pair)}
                    pairs[json.dumps(row)] = None
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in pairs), encoding="utf-8")
    os.replace(part, path)
    logger.info("%d mistakes of %d questions in %s", len(pairs), num_questions, path)
    return len(pairs)


def _first_mistake(
    said: dict[str, str], right: StagedAnswer
) -> tuple[str, str, StagedAnswer] | None:
    for name in STAGES:
        text = said.get(name, "")
        if text != getattr(right, name):
            return (name, text, right) if text else None
    return None


class OwnMistakes:
    """The judge examples in a file that `collect_mistakes` wrote, each image drawn anew by index."""

    def __init__(self, path: Path, encoder: ChatEncoder, *, seed: int, visits: int = 64) -> None:
        self._encoder = encoder
        self._pairs = list(_read(path))
        self._seed = seed
        self._visits = visits

    def __len__(self) -> int:
        return len(self._pairs) * self._visits

    def length(self, index: int) -> int:
        pair = self._pairs[index % len(self._pairs)][1]
        return len(pair.user_text()) // 4

    def __getitem__(self, index: int) -> Examples:
        scene, pair = self._pairs[index % len(self._pairs)]
        rng = random.Random(f"{self._seed}/own/{index}")
        return pair_examples(self._encoder, pair, draw_scene(scene, rng))


def _read(path: Path) -> Iterator[tuple[Scene, JudgePair]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        hints: Sequence[Sequence[str]] = row["pair"].pop("hints")
        pair = JudgePair(hints=tuple((name, text) for name, text in hints), **row["pair"])
        yield tuple(Thing(**thing) for thing in row["scene"]), pair
