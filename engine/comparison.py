"""Judging given texts as a policy: one round of pairs, no sample and no search."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.events import Done
from stagebeam.engine.outputs import SearchResult
from stagebeam.engine.question import Question
from stagebeam.engine.search.requests import Judge, Pair, Policy, Verdict


class Comparison:
    """Pairs of texts to compare; their verdicts become a question's result."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        criterion: str,
        hints: Sequence[tuple[str, str]] = (),
    ) -> None:
        if not pairs or not all(map(_is_text_pair, pairs)):
            raise InvalidInputError(
                f"pairs must be (first text, second text) tuples, got {pairs!r}"
            )
        if not all(map(_is_text_pair, hints)):
            raise InvalidInputError(f"hints must be (name, text) tuples, got {hints!r}")
        if not (isinstance(criterion, str) and criterion):
            raise InvalidInputError(f"criterion must be a non-empty string, got {criterion!r}")
        self._request = Judge(
            pairs=tuple(Pair(first=a, second=b, index=i) for i, (a, b) in enumerate(pairs)),
            criterion=criterion,
            hints=tuple((name, text) for name, text in hints),
        )
        self._verdicts: list[Verdict] = []

    def attach(self, question: Question) -> Question:
        """Make a question without a policy run this comparison."""
        question.policy = self._policy()
        question.finish = self._finish
        return question

    def _policy(self) -> Policy:
        self._verdicts = yield self._request
        return SearchResult(stages=(), text="", token_ids=(), finish_reason="tag")

    def _finish(self, question: Question, _: SearchResult) -> None:
        question.handle.finish(self._verdicts, Done(answer=None))


def _is_text_pair(value: object) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(text, str) for text in value)
    )
