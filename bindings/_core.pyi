"""The C++ core: block pool, tag matcher, counter generator and sampler.

Free of torch; built from csrc/core by setup.py. Out of blocks is `None` or `False` and changes
nothing; a wrong argument, a released sequence's id included, is a `ValueError`.
"""

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Ids: TypeAlias = Sequence[int] | NDArray[np.integer]
_Int32s: TypeAlias = NDArray[np.int32]

class BlockPool:
    """Sequences of tokens over fixed-size, reference-counted blocks.

    A slot is `block_id * block_size + offset`. Copies are (source block, destination block) rows:
    run them, call by call, before writing any slot of the same or a later call. Safe to call from
    several threads.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_free(self) -> int: ...
    @property
    def num_reserved(self) -> int:
        """Free blocks that are set aside for sequences."""

    @property
    def num_available(self) -> int:
        """Free blocks that are not reserved."""

    @property
    def num_used(self) -> int: ...
    def create(self, reserve_tokens: int = 0) -> int | None:
        """A new empty sequence with a reservation; None if that does not fit."""

    def fork(self, seq: int, n: int, reserve_tokens: int = 0) -> list[int] | None:
        """`n` children that share every block of `seq`, its partial tail too; None if it does not fit.

        Each child reserves for `reserve_tokens` more tokens, its copy of the tail included. If `seq`
        holds a reservation, that grows by the copy that `seq` may now have to make.
        """

    def snapshot(self, seq: int) -> int:
        """A fork of one without a reservation: references only, so it cannot fail.

        A reservation of `seq` keeps its blocks, but the copy of a partial tail that the snapshot now
        shares may take one of them: `reserve` again where that matters.
        """

    def reserve(self, seq: int, num_tokens: int) -> bool:
        """Make the reservation of `seq` cover `num_tokens` more; False changes nothing."""

    def unreserve(self, seq: int) -> None:
        """Give back what `seq` reserved and has not used."""

    def append(self, seq: int, n: int) -> tuple[_Int32s, _Int32s] | None:
        """Append `n` tokens: (slots [n], copies [m, 2]), or None if out of blocks."""

    def append_one(self, seqs: _Ids) -> tuple[_Int32s, _Int32s] | None:
        """Append a token to each of R different sequences: (slots [R], copies [m, 2]), or None.

        All or nothing. Of the owners of a shared partial tail the last one writes in place.
        """

    def truncate(self, seq: int, length: int) -> None:
        """Roll back to `length` tokens; the blocks go back to the pool, not to the reservation."""

    def release(self, seqs: _Ids) -> None: ...
    def commit(self, winner: int, losers: _Ids) -> None:
        """Release the losers and give back what the winner reserved and did not use."""

    def length(self, seq: int) -> int: ...
    def block_table(self, seq: int) -> _Int32s:
        """A copy of its block ids."""

    def fill_block_tables(self, seqs: _Ids, out: _Int32s, start_block: int = 0) -> None:
        """Write the block ids from `start_block` on into the rows of `out` [R, W], pad -1.

        Rows must be contiguous; a table wider than W is a ValueError.
        """

    def num_shared_blocks(self, seqs: _Ids) -> int:
        """Leading full blocks common to all; 0 for no sequences."""

    def stats(self) -> dict[str, int]:
        """num_blocks, num_free, num_reserved, num_used, num_sequences, and

        num_shared: blocks with several owners; num_logical: blocks if nothing were shared
        num_copies, peak_used: since the pool was made
        """

    def check(self) -> None:
        """Verify every invariant; a RuntimeError says which one is broken."""

class TagMatcher:
    """Tags as an automaton over token ids.

    tags:        different byte strings, none empty
    token_bytes: per token id; None (a special token) goes back to the start, b"" keeps the state

    Accept states are absorbing. The tag completed first decides; of tags that end at the same
    byte, the longest.
    """

    start_state: ClassVar[int]
    def __init__(self, tags: Sequence[bytes], token_bytes: Sequence[bytes | None]) -> None: ...
    @property
    def num_states(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def table(self) -> NDArray[np.int16]:
        """The next state, [num_states, vocab_size]; a read-only view of the matcher's memory."""

    @property
    def accept_tag(self) -> NDArray[np.int32]:
        """[num_states]: the index of the tag that the state accepts, or -1; a read-only view."""

def philox4x32(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10; the low half of the 64-bit `key` is Random123's key[0]."""

def uniforms(seed: int, step: int, uid: int, token_ids: ArrayLike) -> NDArray[np.float32]:
    """The uniform number of each token id, in (0, 1): ((word >> 9) + 0.5) * 2^-23.

    Word `token_id % 4` of Philox with key `seed` and counter (step, token_id // 4, uid's low half,
    uid's high half).
    """

def kept_ids(
    logits: ArrayLike, temperature: float, top_k: int, top_p: float, min_p: float
) -> _Int32s:
    """The ids that `sample_row` chooses from, ascending."""

def sample_row(
    logits: ArrayLike,
    seed: int,
    uid: int,
    step: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> tuple[int, float]:
    """One token and its natural-log probability, computed in float64.

    Filters in HF's order: temperature, top_k (ties all kept), top_p (of equal logits the lowest id
    first), min_p; then the largest `logit / temperature - log(-log(u))`. Temperature 0 is argmax,
    ties to the lowest id. The logprob is of the untempered, unfiltered distribution.
    """
