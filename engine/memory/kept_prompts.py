"""Judge prompts that a question's next judge round may begin with: their blocks, kept between rounds.

Knows tokens and sequences, no score and no policy. Invariant: what is kept is a cache; dropping it at
any time changes costs, never results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagebeam.bindings._core import BlockPool


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """A prefilled prompt; `image_position` is of its image token, None where it sees no image."""

    token_ids: Sequence[int]
    image_position: int | None
    seq: int


class KeptPrompts:
    """Kept prompts by question id; the sequences belong to it until they are dropped."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._kept: dict[int, list[KeptPrompt]] = {}

    def keep(self, question_id: int, prompts: Sequence[KeptPrompt]) -> None:
        """Take the prompts' sequences over, what they reserved and did not use given back."""
        for prompt in prompts:
            self._pool.unreserve(prompt.seq)
        self._kept.setdefault(question_id, []).extend(prompts)

    def longest_start(
        self, question_id: int, token_ids: Sequence[int], image_position: int | None
    ) -> tuple[int, int]:
        """(tokens, sequence): the kept prompt that begins most alike; no tokens where none does.

        What its rows saw of an image must be the same too.
        """
        shared = [
            (shared_tokens(kept.token_ids, token_ids, self._pool.block_size), kept.seq)
            for kept in self._kept.get(question_id, [])
            if kept.image_position == image_position
        ]
        return max(shared, default=(0, -1))

    def seqs(self, question_id: int) -> list[int]:
        return [kept.seq for kept in self._kept.get(question_id, [])]

    def drop(self, question_id: int) -> None:
        """Release what is kept for a question."""
        self._pool.release([kept.seq for kept in self._kept.pop(question_id, [])])

    def drop_all(self) -> bool:
        """Make room; False where nothing was kept."""
        found = [*self._kept]
        for question_id in found:
            self.drop(question_id)
        return bool(found)


def shared_tokens(kept: Sequence[Any], token_ids: Sequence[Any], block_size: int) -> int:
    """Tokens with which both begin: whole blocks, and never the last of `token_ids`."""
    num_common = 0
    for begin in range(0, len(token_ids) - 1 - block_size + 1, block_size):
        end = begin + block_size
        if kept[begin:end] != token_ids[begin:end]:
            break
        num_common = end
    return num_common
