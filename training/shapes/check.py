"""Evaluation while the bundled checkpoint trains: the engine answers drawn validation questions."""

from __future__ import annotations

import logging
import random
from pathlib import Path

from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams, SearchParams
from stagebeam.training.shapes.annotate import annotate
from stagebeam.training.shapes.questions import KINDS, sample_question
from stagebeam.training.shapes.scene import draw_scene, sample_scene

logger = logging.getLogger(__name__)

STAGES = ("caption", "reasoning", "conclusion")


class ShapesCheck:
    """Answers `num_questions` validation questions greedily; a Trainer's `eval_fn`.

    Gives the share of well-formed answers, and of each stage whose text is exactly the annotation's
    ("conclusion": the answer is right).
    """

    def __init__(self, seed: int, num_questions: int = 96) -> None:
        self._asked = []
        self._answers = []
        for index in range(num_questions):
            rng = random.Random(f"{seed}/check/{index}")
            scene = sample_scene(rng, "validation")
            question = sample_question(rng, scene, KINDS[index % len(KINDS)])
            self._asked.append({"question": question.text, "image": draw_scene(scene, rng)})
            self._answers.append(annotate(question, scene))

    def __call__(self, step: int, folder: Path) -> dict[str, float]:
        """Load the exported `folder` and answer."""
        with Engine(folder) as engine:
            given = engine.answer_many(
                self._asked,
                search=SearchParams(strategy="greedy"),
                sampling=SamplingParams(temperature=0.0, max_tokens=256),
            )
        count = len(given)
        numbers = {"well_formed": sum(one.finish_reason == "tag" for one in given) / count}
        said = [{stage.name: stage.text.strip() for stage in one.stages} for one in given]
        for name in STAGES:
            pairs = zip(said, self._answers, strict=True)
            numbers[name] = sum(texts.get(name) == getattr(a, name) for texts, a in pairs) / count
        logger.info("step %d: %s", step, numbers)
        return numbers
