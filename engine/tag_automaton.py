"""Closing tags as a table over token ids, `next_state[state, token]`, for the sampling step.

It owns what bytes a token id stands for and the bank that stacks the tables of several tag sets. It
knows no stage and no branch. Invariant: from a set's start state, the state after some tokens
accepts a tag exactly when the tag's bytes occur in the tokens' concatenated bytes since the last
special token; the first one to be completed stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from stagebeam.bindings._core import TagMatcher
from stagebeam.engine.errors import CheckpointError, InvalidInputError

MAX_TAGS = 63  # bits of a goal mask in int64
_MAX_STATES = 2**15  # int16
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_map() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE vocabularies (GPT-2's encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = printable + [256 + i for i in range(len(others))]
    return {chr(char): byte for char, byte in zip(stand_ins, printable + others, strict=True)}


_BYTE_LEVEL = _byte_level_map()


def _byte_level_bytes(piece: str) -> bytes:
    if all(char in _BYTE_LEVEL for char in piece):
        return bytes(_BYTE_LEVEL[char] for char in piece)
    return piece.encode()  # as HF's ByteLevel decoder does


def _sentencepiece_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


def token_bytes(tokenizer: Any, vocab_size: int | None = None) -> list[bytes | None]:
    """What each token id adds to the text, as bytes; None for special tokens and unused ids.

    tokenizer:  an HF fast tokenizer or a `tokenizers.Tokenizer` of the byte-level or the
                SentencePiece kind, or a `sentencepiece.SentencePieceProcessor`
    vocab_size: the width of the logits, where it differs from the tokenizer's
    """
    if hasattr(tokenizer, "id_to_piece"):
        pieces = _sentencepiece_vocab(tokenizer)
    else:
        pieces = _fast_vocab(tokenizer)
    size = vocab_size if vocab_size is not None else max(pieces, default=-1) + 1
    return [pieces.get(token) for token in range(size)]


def _sentencepiece_vocab(processor: Any) -> dict[int, bytes | None]:
    return {
        token: None
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token)
        else _sentencepiece_bytes(processor.id_to_piece(token))
        for token in range(processor.get_piece_size())
    }


def _fast_vocab(tokenizer: Any) -> dict[int, bytes | None]:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise CheckpointError(
            "the tokenizer must be a fast one (tokenizer.json) or SentencePiece's, got "
            f"{type(tokenizer).__name__}; save it with a tokenizer.json"
        )
    settings = json.loads(backend.to_str())
    decoder = settings.get("decoder") or {}
    kinds = {step["type"] for step in decoder.get("decoders", [decoder]) if step}
    if "ByteLevel" in kinds:
        to_bytes = _byte_level_bytes
    elif kinds & {"ByteFallback", "Metaspace"}:
        to_bytes = _sentencepiece_bytes
    else:
        raise CheckpointError(
            "the tokenizer's decoder must be ByteLevel, or ByteFallback or Metaspace as "
            f"SentencePiece has them, got {sorted(kinds) or None}"
        )
    pieces: dict[int, bytes | None] = {
        token: to_bytes(piece)
        for piece, token in backend.get_vocab(with_added_tokens=False).items()
    }
    for token in getattr(tokenizer, "all_special_ids", ()):
        pieces[token] = None
    for added in settings.get("added_tokens") or []:  # last: its flag is what decoding goes by
        pieces[added["id"]] = None if added["special"] else added["content"].encode()
    return pieces


@dataclass(frozen=True, eq=False)
class TagSet:
    """A registered set; tag i has bit i in goal masks. Hold it while a branch is in its states."""

    start_state: int
    tags: tuple[str, ...]

    def goal_mask(self, goals: Iterable[str]) -> int:
        """The mask of those of the set's tags that end a sample well."""
        return sum(1 << self.tags.index(goal) for goal in set(goals))


@dataclass(slots=True)
class _Place:
    """The rows [start, end) of a set; `user` gives None once nobody holds it."""

    start: int
    end: int
    user: Callable[[], TagSet | None]


class TagBank:
    """Several tag sets in one table, so that rows with different stage plans share a batch.

    next_state: [num_states, vocab_size] int16; state 0 stays 0 and accepts nothing
    accept_tag: [num_states] int32, the tag's place in its set (0 .. 62) or -1
    Registering a new set may replace both tensors by longer ones; the states of every set that is
    held keep their rows. A set that nobody holds is kept until its rows are wanted, the one that was
    longest unused going first; the table grows beyond `roomy_bytes` only for sets that are held.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        device: torch.device | str = "cpu",
        *,
        roomy_bytes: int = 64 << 20,
    ) -> None:
        self._token_bytes = token_bytes
        self._places: dict[tuple[str, ...], _Place] = {}  # the longest unused first
        self._roomy_states = min(_MAX_STATES, roomy_bytes // (2 * max(1, len(token_bytes))))
        self.next_state: Tensor = torch.zeros(
            (1, len(token_bytes)), dtype=torch.int16, device=device
        )
        self.accept_tag: Tensor = torch.full((1,), -1, dtype=torch.int32, device=device)

    def register(self, tags: Iterable[str]) -> TagSet:
        """Compile a set of different, non-empty tags; a set that is still there costs nothing."""
        tags = tuple(tags)
        place = self._places.pop(tags, None) or self._add(tags)
        self._places[tags] = place
        user = place.user()
        if user is None:
            user = TagSet(place.start, tags)
            place.user = ref(user)
        return user

    def _add(self, tags: tuple[str, ...]) -> _Place:
        if len(tags) > MAX_TAGS:
            raise InvalidInputError(
                f"a sample may end at one of at most {MAX_TAGS} strings, got {len(tags)}; use fewer "
                "stages or stop strings"
            )
        try:
            matcher = TagMatcher([tag.encode() for tag in tags], self._token_bytes)
        except ValueError as error:
            raise InvalidInputError(f"cannot compile the tags {tags}: {error}") from error
        count = matcher.num_states
        start = self._find_room(count)
        if start is None:
            raise InvalidInputError(
                f"the tag automaton holds at most {_MAX_STATES} states and has no room for the "
                f"{count} of {_clipped(tags)} now; use shorter stop strings or fewer at once"
            )
        device = self.next_state.device
        rows = torch.from_numpy(matcher.table + start).to(device)
        accept = torch.from_numpy(matcher.accept_tag.astype("int32")).to(device)
        num_here = min(count, len(self.accept_tag) - start)
        self.next_state[start : start + num_here] = rows[:num_here]
        self.accept_tag[start : start + num_here] = accept[:num_here]
        if num_here < count:
            self.next_state = torch.cat([self.next_state, rows[num_here:]])
            self.accept_tag = torch.cat([self.accept_tag, accept[num_here:]])
        return _Place(start, start + count, _nobody)

    def _find_room(self, count: int) -> int | None:
        """Where `count` rows are free, idle sets making way; at the table's end it must grow."""
        while True:
            start = self._first_gap(count)
            num_states = max(start + count, len(self.accept_tag))
            idle = next((tags for tags, p in self._places.items() if p.user() is None), None)
            has_grown = num_states > max(self._roomy_states, len(self.accept_tag))
            if not has_grown or (idle is None and num_states <= _MAX_STATES):
                return start
            if idle is None:
                return None
            del self._places[idle]

    def _first_gap(self, count: int) -> int:
        start = 1
        for place in sorted(self._places.values(), key=lambda place: place.start):
            if place.start - start >= count:
                return start
            start = place.end
        return start


def _nobody() -> None:
    """The dead reference of a set that has not been handed out."""


def _clipped(tags: tuple[str, ...]) -> str:
    words = str(tags)
    return words if len(words) <= 200 else f"{words[:200]}..."
