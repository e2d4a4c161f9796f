"""Evaluation while training: the engine answers held-out questions from a fresh export.

An answer is well formed where every stage closed with its tag, and matches where its conclusion is
the reference's, letter case and white space aside.
"""

from __future__ import annotations

import logging
from pathlib import Path

from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import SamplingParams, SearchParams
from stagebeam.training.data import ConversationDataset

logger = logging.getLogger(__name__)


class GenerationCheck:
    """Answers the first `num_questions` rows of a data set greedily; a Trainer's `eval_fn`.

    max_tokens: per stage
    """

    def __init__(
        self, dataset: ConversationDataset, *, num_questions: int = 32, max_tokens: int = 512
    ) -> None:
        if num_questions < 1:
            raise InvalidInputError(f"num_questions must be >= 1, got {num_questions}")
        self._rows = [dataset.row(i) for i in range(min(num_questions, len(dataset)))]
        self._sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)

    def __call__(self, step: int, folder: Path) -> dict[str, float]:
        """Load `folder` and return the shares of well-formed and of matching answers."""
        questions = [
            {
                "question": next(text for role, text in row.turns if role == "user"),
                "image": row.image,
            }
            for row in self._rows
        ]
        with Engine(folder) as engine:
            conclude = engine.plan.conclusion
            answers = engine.answer_many(
                questions, search=SearchParams(strategy="greedy"), sampling=self._sampling
            )
        wanted = [
            conclude(next(text for role, text in row.turns if role == "assistant"))
            for row in self._rows
        ]
        num_matching = sum(
            _plain(answer.conclusion) == _plain(reference) and bool(reference)
            for answer, reference in zip(answers, wanted)
        )
        num_well_formed = sum(answer.finish_reason == "tag" for answer in answers)
        numbers = {
            "well_formed": num_well_formed / len(answers),
            "matching": num_matching / len(answers),
        }
        logger.info("step %d: %s", step, numbers)
        return numbers


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
