"""What fits and what goes first: admission arithmetic, age order, prefill chunks.

Torch-free and without side effects on the caches; the loop carries the decisions out. Invariant:
any question that `worst_case_blocks` admits can run alone, so the oldest one can always proceed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagebeam.engine.params import SearchParams
from stagebeam.engine.stages import Stage, StagePlan

if TYPE_CHECKING:
    import numpy as np

    from stagebeam.engine.question import Question
    from stagebeam.engine.step.batch import ImageRef


@dataclass(slots=True, kw_only=True)
class PrefillJob:
    """Tokens of one sequence on their way into the cache.

    next:    position of the first token not yet prefilled; end is one past the last
    after:   a job whose rows must reach `next` before (or in the same pass as) this one starts
    on_done: called with the last row's hidden state, [hidden_size], or None if not wanted
    """

    question: Question
    seq: int
    token_ids: Sequence[int]
    start: int
    slots: np.ndarray
    image: ImageRef | None
    wants_hidden: bool
    on_done: Callable[[Any], None]
    is_judging: bool
    after: PrefillJob | None = None
    next: int = -1

    def __post_init__(self) -> None:
        self.next = self.start

    @property
    def end(self) -> int:
        return len(self.token_ids)


def select_chunks(
    jobs: Sequence[PrefillJob], chunk_size: int, max_tokens: int
) -> list[tuple[PrefillJob, int]]:
    """The (job, chunk end) of one pass, oldest jobs first.

    Chunks end at multiples of `chunk_size` from their prompt's start whatever else runs, so a
    row's result does not depend on the other questions.
    """
    chosen: list[tuple[PrefillJob, int]] = []
    reached: dict[int, int] = {}
    num_tokens = 0
    for job in jobs:
        if job.after is not None and reached.get(id(job.after), job.after.next) < job.start:
            continue
        end = min(job.end, (job.next // chunk_size + 1) * chunk_size)
        if chosen and num_tokens + end - job.next > max_tokens:
            break
        num_tokens += end - job.next
        reached[id(job)] = end
        chosen.append((job, end))
    return chosen


def stage_widths(search: SearchParams, plan: StagePlan, max_tokens: int) -> list[tuple[int, int]]:
    """(branches, tokens each) of every sampling round a strategy may run, in order."""
    if search.strategy == "stage_beam":
        return [
            (s.beam_size or search.beam_size, _stage_tokens(s, max_tokens)) for s in plan.stages
        ]
    if search.strategy == "sentence_beam":
        return [(search.beam_size, max_tokens)] * search.max_rounds
    if search.strategy == "swires":
        swires = search.swires
        rounds = [(1, max_tokens), (swires.num_captions, max_tokens)]
        return [*rounds, *[(max(1, swires.num_captions // swires.keep), max_tokens)] * 2]
    return [(search.beam_size if search.strategy == "best_of_n" else 1, max_tokens)]


def _stage_tokens(stage: Stage, max_tokens: int) -> int:
    if stage.sampling is not None:
        return stage.max_tokens or stage.sampling.max_tokens
    return min(stage.max_tokens or max_tokens, max_tokens)


def worst_case_blocks(
    num_prompt_tokens: int, widths: Sequence[tuple[int, int]], max_model_len: int, block_size: int
) -> int:
    """The most blocks that any one stage may need: its trunk and its branches' own blocks.

    A trunk of t tokens leaves its n branches min(tokens, max_model_len - t) each, so the worst
    trunk is the longest that still leaves them their full length.
    """
    worst = 0
    longest = num_prompt_tokens
    for n, tokens in widths:
        trunk = max(num_prompt_tokens, min(longest, max_model_len - tokens))
        tail = min(tokens, max_model_len - trunk)
        own = -(-(trunk % block_size + tail) // block_size) + 1
        worst = max(worst, -(-trunk // block_size) + n * own)
        longest = min(max_model_len, longest + tokens)
    return worst
