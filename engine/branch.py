"""A branch as a policy sees it: text, tokens, score and how it ended.

A value: it knows no block, no logits and no device. The loop maps `key` to cache state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["tag", "eos", "length", "wrong_tag", "aborted"]

# Bit fields of a branch's 64-bit uid: the sampler's counter holds it, so a branch's tokens depend
# on where it stands in the search and on nothing else.
_BRANCH_BITS = 24
_ROUND_BITS = 24
# The stage word's two top bits mark what is sampled while judging: branches never share its draws.
_VERDICT = 1 << 15
_GATE = 1 << 14


def branch_uid(stage: int, branch: int, round: int = 0) -> int:
    """The 64-bit uid of candidate `branch` of `stage` in `round`, the sampler's counter words."""
    assert 0 <= stage < _GATE
    return _pack(stage, branch, round)


def verdict_uid(stage: int, index: int, round: int = 0) -> int:
    """The uid of the generated verdict of the pair `Pair.index`."""
    assert 0 <= stage < _GATE
    return _pack(_VERDICT | stage, index, round)


def gate_uid(stage: int, index: int, round: int = 0) -> int:
    """The uid of the generated gate of the candidate `Gate.indices[...]`."""
    assert 0 <= stage < _GATE
    return _pack(_GATE | stage, index, round)


def _pack(stage: int, branch: int, round: int) -> int:
    assert 0 <= branch < 1 << _BRANCH_BITS
    assert 0 <= round < 1 << _ROUND_BITS
    return (stage << (_BRANCH_BITS + _ROUND_BITS)) | (round << _BRANCH_BITS) | branch


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One candidate continuation of a prefix.

    key:                identity within its question, given by the loop; the root is 0
    index:              position among its siblings, 0-based; ties go to the lower one
    text, token_ids:    what this branch added to its prefix, the closing tag included
    inner:              the stage's inner text: tags stripped, white space trimmed
    cumulative_logprob: natural log, of the untempered distribution
    finish_reason:      "tag" is the only well-formed end of a stage
    """

    key: int
    index: int
    text: str
    inner: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    finish_reason: FinishReason

    @property
    def is_well_formed(self) -> bool:
        return self.finish_reason == "tag"


ROOT = Branch(
    key=0, index=0, text="", inner="", token_ids=(), cumulative_logprob=0.0, finish_reason="tag"
)
