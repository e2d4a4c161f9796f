"""The C++ block pool against a short Python twin, and against the contents of simulated cells."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stagebeam.bindings._core import BlockPool


@dataclass
class Seq:
    blocks: list[int] = field(default_factory=list)  # the twin's own ids, never reused
    tokens: list[int] = field(default_factory=list)
    reserved: int = 0  # blocks
    promised: int = 0  # tokens


class TwinPool:
    """The pool's rules over dicts and lists; every count is recomputed from the block tables."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.seqs: dict[int, Seq] = {}
        self.num_made = self.num_copies = 0

    def owners(self, block: int) -> int:
        return sum(block in seq.blocks for seq in self.seqs.values())

    @property
    def num_used(self) -> int:
        return len({block for seq in self.seqs.values() for block in seq.blocks})

    @property
    def num_reserved(self) -> int:
        return sum(seq.reserved for seq in self.seqs.values())

    @property
    def num_available(self) -> int:
        return self.num_blocks - self.num_used - self.num_reserved

    def is_partial(self, seq: Seq) -> bool:
        return len(seq.tokens) % self.block_size != 0

    def is_shared(self, seq: Seq) -> bool:
        return self.is_partial(seq) and self.owners(seq.blocks[-1]) > 1

    def need(self, seq: Seq, tokens: int, must_copy: bool) -> int:
        held = -(-(len(seq.tokens) + tokens) // self.block_size) - len(seq.blocks)
        return held + must_copy if tokens else 0

    def shrink_promise(self, seq: Seq) -> None:
        shared = self.is_shared(seq)
        while self.need(seq, seq.promised, shared) > seq.reserved:
            seq.promised -= 1

    def create(self, reserve: int) -> Seq | None:
        need = self.need(Seq(), reserve, False)
        return Seq(reserved=need, promised=reserve) if need <= self.num_available else None

    def fork(self, seq: Seq, n: int, reserve: int) -> list[Seq] | None:
        child_need = self.need(seq, reserve, self.is_partial(seq))
        own_need = max(seq.reserved, self.need(seq, seq.promised, self.is_partial(seq)))
        if n * child_need + own_need - seq.reserved > self.num_available:
            return None
        seq.reserved = own_need
        return [Seq([*seq.blocks], [*seq.tokens], child_need, reserve) for _ in range(n)]

    def reserve(self, seq: Seq, tokens: int) -> bool:
        need = max(seq.reserved, self.need(seq, tokens, self.is_shared(seq)))
        if need - seq.reserved > self.num_available:
            return False
        seq.reserved, seq.promised = need, max(seq.promised, tokens)
        return True

    def append(self, seq: Seq, tokens: list[int]) -> bool:
        must_copy = bool(tokens) and self.is_shared(seq)
        need = self.need(seq, len(tokens), must_copy)
        if max(need - seq.reserved, 0) > self.num_available:
            return False
        new = list(range(self.num_made, self.num_made + need))
        if must_copy:
            seq.blocks[-1] = new.pop()
        self.num_copies += must_copy
        self.num_made += need
        seq.blocks += new
        seq.tokens += tokens
        seq.reserved = max(seq.reserved - need, 0)
        seq.promised = max(seq.promised - len(tokens), 0)
        return True

    def append_one(self, keys: list[int], tokens: list[int]) -> bool:
        before = copy.deepcopy(self.__dict__)
        if all(self.append(self.seqs[key], [t]) for key, t in zip(keys, tokens, strict=True)):
            return True
        self.__dict__ = before
        return False

    def truncate(self, seq: Seq, length: int) -> None:
        del seq.tokens[length:]
        del seq.blocks[-(-length // self.block_size) :]
        self.shrink_promise(seq)

    def num_shared_blocks(self, seqs: list[Seq]) -> int:
        tables = [seq.blocks[: len(seq.tokens) // self.block_size] for seq in seqs]
        same = [len(set(column)) == 1 for column in zip(*tables, strict=False)]
        return same.index(False) if False in same else len(same)


POISON = -1


class PoolMachine(RuleBasedStateMachine):
    """Runs both pools; cells hold each token's value and are read back through block tables."""

    @initialize(num_blocks=st.integers(1, 24), block_size=st.integers(1, 5))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.twin = TwinPool(num_blocks, block_size)
        self.cells = np.full((num_blocks, block_size), POISON)
        self.released: list[int] = []
        self.next_token = 0
        self.peak_used = 0

    @property
    def ids(self) -> list[int]:
        return list(self.twin.seqs)

    def pick(self, index: int) -> tuple[int, Seq]:
        key = self.ids[index % len(self.ids)]
        return key, self.twin.seqs[key]

    def new_tokens(self, n: int) -> list[int]:
        self.next_token += n
        return list(range(self.next_token - n, self.next_token))

    def write(self, result: tuple[np.ndarray, np.ndarray], tokens: list[int]) -> None:
        slots, copies = result
        assert slots.dtype == copies.dtype == np.int32
        assert copies.shape[1:] == (2,)
        assert not set(copies[:, 0].tolist()) & set(copies[:, 1].tolist())
        self.cells[copies[:, 1]] = self.cells[copies[:, 0]]
        self.cells.reshape(-1)[slots] = tokens

    @rule(reserve=st.integers(0, 30))
    def create(self, reserve: int) -> None:
        key, seq = self.pool.create(reserve), self.twin.create(reserve)
        assert (key is None) == (seq is None)
        if key is not None and seq is not None:
            self.twin.seqs[key] = seq

    @precondition(lambda self: self.ids)
    @rule(index=st.integers(0, 99), n=st.integers(1, 5), reserve=st.integers(0, 12))
    def fork(self, index: int, n: int, reserve: int) -> None:
        key, seq = self.pick(index)
        keys, seqs = self.pool.fork(key, n, reserve), self.twin.fork(seq, n, reserve)
        assert (keys is None) == (seqs is None)
        self.twin.seqs.update(zip(keys or [], seqs or [], strict=True))

    @precondition(lambda self: self.ids)
    @rule(index=st.integers(0, 99))
    def snapshot(self, index: int) -> None:
        key, seq = self.pick(index)
        self.twin.seqs[self.pool.snapshot(key)] = Seq([*seq.blocks], [*seq.tokens])
        self.twin.shrink_promise(seq)

    @precondition(lambda self: self.ids)
    @rule(index=st.integers(0, 99), n=st.integers(0, 12))
    def append(self, index: int, n: int) -> None:
        key, seq = self.pick(index)
        tokens = self.new_tokens(n)
        result = self.pool.append(key, n)
        assert (result is not None) == self.twin.append(seq, tokens)
        if result is not None:
            self.write(result, tokens)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def append_one(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(self.ids), unique=True))
        tokens = self.new_tokens(len(keys))
        result = self.pool.append_one(np.array(keys, dtype=np.int64))
        assert (result is not None) == self.twin.append_one(keys, tokens)
        if result is not None:
            self.write(result, tokens)

    @precondition(lambda self: self.ids)
    @rule(index=st.integers(0, 99), n=st.integers(0, 30))
    def reserve(self, index: int, n: int) -> None:
        key, seq = self.pick(index)
        assert self.pool.reserve(key, n) == self.twin.reserve(seq, n)

    @precondition(lambda self: self.ids)
    @rule(index=st.integers(0, 99))
    def unreserve(self, index: int) -> None:
        key, seq = self.pick(index)
        self.pool.unreserve(key)
        seq.reserved = seq.promised = 0

    @precondition(lambda self: self.ids)
    @rule(index=st.integers(0, 99), share=st.floats(0, 1))
    def truncate(self, index: int, share: float) -> None:
        key, seq = self.pick(index)
        length = round(share * len(seq.tokens))
        self.pool.truncate(key, length)
        self.twin.truncate(seq, length)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(self.ids), unique=True, max_size=3))
        self.pool.release(keys)
        self.forget(keys)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        winner, *losers = data.draw(st.lists(st.sampled_from(self.ids), unique=True, min_size=1))
        self.pool.commit(winner, losers)
        self.forget(losers)
        self.twin.seqs[winner].reserved = self.twin.seqs[winner].promised = 0

    def forget(self, keys: list[int]) -> None:
        for key in keys:
            del self.twin.seqs[key]
        self.released += keys

    @precondition(lambda self: self.released)
    @rule(index=st.integers(0, 99), number=st.integers(0, 7))
    def use_after_release(self, index: int, number: int) -> None:
        stale = self.released[index % len(self.released)]
        alive = self.ids[:1]
        use = [
            lambda: self.pool.fork(stale, 1),
            lambda: self.pool.append(stale, 1),
            lambda: self.pool.append_one([*alive, stale]),
            lambda: self.pool.release([*alive, stale]),
            lambda: self.pool.commit(stale, alive),
            lambda: self.pool.commit(*alive, [stale]) if alive else self.pool.length(stale),
            lambda: self.pool.truncate(stale, 0),
            lambda: self.pool.release([*alive, *alive]) if alive else self.pool.reserve(stale, 1),
        ][number]
        with pytest.raises(ValueError, match="expected"):
            use()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool, twin = self.pool, self.twin
        pool.check()
        seqs = list(twin.seqs.values())
        blocks = [block for seq in seqs for block in seq.blocks]
        self.peak_used = max(self.peak_used, twin.num_used)
        assert pool.stats() == {
            "num_blocks": twin.num_blocks,
            "num_free": twin.num_blocks - twin.num_used,
            "num_reserved": twin.num_reserved,
            "num_used": twin.num_used,
            "num_shared": len({block for block in blocks if blocks.count(block) > 1}),
            "num_sequences": len(seqs),
            "num_copies": twin.num_copies,
            "peak_used": self.peak_used,
            "num_logical": len(blocks),
        }
        assert pool.num_available == twin.num_available >= 0

        tables = {key: pool.block_table(key).tolist() for key in twin.seqs}
        pairs = {(a, b) for key, seq in twin.seqs.items() for a, b in zip(seq.blocks, tables[key])}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        used = {block for table in tables.values() for block in table}
        self.cells[[block for block in range(twin.num_blocks) if block not in used]] = POISON
        for key, seq in twin.seqs.items():
            assert pool.length(key) == len(seq.tokens)
            assert len(tables[key]) == len(seq.blocks)
            assert self.cells[tables[key]].reshape(-1)[: len(seq.tokens)].tolist() == seq.tokens
        some = self.ids[-3:]
        expected = twin.num_shared_blocks([twin.seqs[key] for key in some])
        assert pool.num_shared_blocks(some) == expected

        width = max((len(table) for table in tables.values()), default=0)
        out = np.full((len(tables), width + 3), 77, dtype=np.int32)
        pool.fill_block_tables(self.ids, out[:, : width + 1], start_block=1)
        for row, table in zip(out.tolist(), tables.values(), strict=True):
            assert row == [*table[1:], *[-1] * (width + 1 - len(table[1:])), 77, 77]

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.release(self.ids)
            assert self.pool.num_available == self.pool.num_blocks


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("is_kept", "num_used"), [(False, 70), (True, 71)])
def test_eight_branches_of_a_thousand_tokens(is_kept: bool, num_used: int):
    pool = BlockPool(num_used, 16)  # just enough
    parent = pool.create()
    assert parent is not None
    pool.append(parent, 1000)
    kids = pool.fork(parent, 8)
    assert kids is not None
    assert pool.num_used == 63
    if not is_kept:
        pool.release([parent])
    appended = pool.append_one(kids)
    assert appended is not None
    assert pool.num_used == num_used
    assert len(appended[1]) == num_used - 63
    assert pool.stats()["num_logical"] == 504 + 63 * is_kept
    pool.release([*kids, *[parent] * is_kept])
    assert pool.num_available == num_used


@pytest.mark.parametrize("offset", [0, 1, 15])
def test_the_last_owner_writes_in_place(offset: int):
    pool = BlockPool(16, 16)
    parent = pool.create()
    assert parent is not None
    pool.append(parent, 32 + offset)
    kids = pool.fork(parent, 3)
    assert kids is not None
    pool.release([parent])
    num_copies = [len(pool.append_one([kid])[1]) for kid in kids]  # type: ignore[index]
    assert num_copies == ([1, 1, 0] if offset else [0, 0, 0])


def test_what_does_not_fit_changes_nothing():
    pool = BlockPool(8, 4)
    seq = pool.create(reserve_tokens=6)
    assert seq is not None
    pool.append(seq, 6)
    before = pool.stats()
    assert pool.fork(seq, 4, 4) is None
    assert pool.fork(seq, 1, 2**62) is None
    assert pool.create(2**62) is None
    assert pool.create(25) is None
    assert pool.append(seq, 27) is None
    assert pool.append(seq, 2**62) is None
    assert pool.reserve(seq, 27) is False
    assert pool.stats() == before


def test_a_fork_tops_up_what_its_parent_reserved():
    pool = BlockPool(3, 4)
    seq = pool.create(reserve_tokens=8)
    assert seq is not None
    pool.append(seq, 2)
    other = pool.create(reserve_tokens=1)
    assert other is not None
    assert pool.fork(seq, 1) is None  # the copy that seq may have to make does not fit
    pool.unreserve(other)
    assert pool.fork(seq, 1) is not None
    assert pool.num_available == 0
    assert pool.append(seq, 6) is not None


def test_wrong_arguments_say_what_was_expected():
    pool = BlockPool(8, 4)
    seq = pool.create()
    assert seq is not None
    pool.append(seq, 6)
    table = np.zeros((1, 2), dtype=np.int32)
    read_only = table.copy()
    read_only.setflags(write=False)
    for call, words in [
        (lambda: BlockPool(0, 16), "num_blocks must be at least 1, got 0"),
        (lambda: BlockPool(2**20, 2**12), "must fit int32 slots, got 4294967296"),
        (lambda: pool.append(seq, -1), "n must be at least 0, got -1"),
        (lambda: pool.fork(seq, 0), "n must be at least 1, got 0"),
        (lambda: pool.create(-1), "reserve_tokens must be at least 0, got -1"),
        (lambda: pool.truncate(seq, 7), "expected a length in 0 .. 6, got 7"),
        (lambda: pool.append_one([seq, seq]), "twice"),
        (lambda: pool.append_one(np.array([[seq]])), r"one-dimensional .* shape \(1, 1\)"),
        (lambda: pool.append_one([1.5]), "array of ints, got .* float64"),
        (lambda: pool.commit(seq, [seq]), "is among the losers"),
        (lambda: pool.fill_block_tables([seq], table[:, :1]), "needs 2 columns, got .* 1"),
        (lambda: pool.fill_block_tables([seq, seq], table), r"\[2, W\] .* got shape \(1, 2\)"),
        (lambda: pool.fill_block_tables([seq], read_only), "writable"),
        (lambda: pool.fill_block_tables([seq], table, start_block=-1), "start_block"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError):
        pool.fill_block_tables([seq], table.astype(np.int64))  # type: ignore[arg-type]
    pool.check()
