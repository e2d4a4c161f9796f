"""Watching an engine from inside: what it computed, from which tokens, and with whose blocks.

A probe poisons with NaN every block that no live sequence owns, and every slot that is handed out
until its token is written; it keeps the logits of every decode row with the row's whole context.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tiny_checkpoint import TinyCheckpoint
from torch import Tensor

from stagebeam.engine.engine import Engine
from stagebeam.engine.models.processor import PreparedImage
from stagebeam.engine.outputs import Answer
from stagebeam.engine.step.native_runner import NativeRunner


@dataclass(frozen=True)
class Row:
    """One decoded row: everything before the token that its logits choose."""

    token_ids: tuple[int, ...]
    image: PreparedImage | None
    logits: Tensor


class Probe:
    """Attach to an idle engine; the counts and rows are of everything since.

    num_prefilled: tokens; num_dropped: times that a question's cached blocks were dropped for another
    decode_sizes:  rows of each decode step
    keeps_rows:    every logit; the engine then looks up after each step
    """

    def __init__(self, engine: Engine, *, keeps_rows: bool = True) -> None:
        loop = engine._loop
        self.engine, self.loop = engine, loop
        self.runner, self.cache = loop._runner, loop._runner.kv_cache
        self.rows: list[Row] = []
        self.num_decodes = self.num_prefills = self.num_encodes = 0
        self.num_prefilled = 0
        self.decode_sizes: list[int] = []
        self.num_dropped = 0
        self._keeps_rows = keeps_rows
        if keeps_rows and isinstance(self.runner, NativeRunner):
            self.runner._poll_steps = 1
        for layers in (self.cache.layers, engine.image_slots.layers):
            for pair in layers:
                for tensor in pair:
                    tensor.fill_(torch.nan)
        self._wrap()

    def _wrap(self) -> None:
        runner, cache, loop = self.runner, self.cache, self.loop
        decode, prefill, encode = runner.decode, runner.prefill, runner.encode_image
        append, append_one = cache.append, cache.append_one
        turn, make_room = loop._turn, loop._make_room

        def watched_turn() -> bool:
            self._poison_free_blocks()
            return turn()

        def watched_decode(batch, may_run_ahead):
            contexts = list(self._contexts(batch)) if self._keeps_rows else []
            result = decode(batch, may_run_ahead)
            if contexts:
                last_logits = self._logits_of(len(contexts))
                for (token_ids, image), row in zip(contexts, last_logits, strict=True):
                    self.rows.append(Row(token_ids, image, row))
            self.num_decodes += result.num_steps
            self.decode_sizes += [len(batch.rows)] * result.num_steps
            return result

        def watched_prefill(chunks):
            self.num_prefills += 1
            self.num_prefilled += sum(len(chunk.token_ids) for chunk in chunks)
            return prefill(chunks)

        def watched_encode(image, slot):
            self.num_encodes += 1
            return encode(image, slot)

        def watched_append(seq, num_tokens):
            return self._poison_slots(append(seq, num_tokens))

        def watched_append_one(seqs):
            return self._poison_slots(append_one(seqs))

        def watched_make_room(question):
            has_dropped = make_room(question)
            self.num_dropped += has_dropped
            return has_dropped

        runner.decode, runner.prefill, runner.encode_image = (
            watched_decode,
            watched_prefill,
            watched_encode,
        )
        if not isinstance(runner, NativeRunner):
            self._watch_logits(runner.model)
        cache.append, cache.append_one = watched_append, watched_append_one
        loop._turn, loop._make_room = watched_turn, watched_make_room

    def _watch_logits(self, model) -> None:
        logits = model.logits

        def watched_logits(hidden):
            self._last_logits = logits(hidden)
            return self._last_logits

        model.logits = watched_logits

    def _logits_of(self, num_rows: int) -> Tensor:
        if isinstance(self.runner, NativeRunner):
            return self.runner.last_logits(num_rows)
        return self._last_logits

    def live_sequences(self) -> list[int]:
        """Every sequence that a question of this moment owns; the loop's thread, or an idle engine."""
        owned = [seq for question in self.loop._running for seq in question.cached_seqs()]
        for round_ in self.loop._judging._rounds.values():
            owned += round_.seqs
        for kept in self.loop._judging._kept._kept.values():
            owned += [prompt.seq for prompt in kept]
        return owned

    def _poison_free_blocks(self) -> None:
        pool, live = self.cache.pool, self.live_sequences()
        owned = np.zeros(pool.num_blocks, dtype=bool)
        for seq in live:
            owned[pool.block_table(seq)] = True
        assert owned.sum() == pool.num_used, "blocks are held that no question owns"
        assert len(live) == pool.stats()["num_sequences"]
        free = torch.from_numpy(np.flatnonzero(~owned))
        for k_cache, v_cache in self.cache.layers:
            k_cache[free] = torch.nan
            v_cache[free] = torch.nan

    def _poison_slots(self, slots: np.ndarray) -> np.ndarray:
        block_size = self.cache.block_size
        blocks, offsets = (
            torch.from_numpy(slots // block_size),
            torch.from_numpy(slots % block_size),
        )
        for k_cache, v_cache in self.cache.layers:
            k_cache[blocks.long(), offsets.long()] = torch.nan
            v_cache[blocks.long(), offsets.long()] = torch.nan
        return slots

    def _contexts(self, batch) -> Iterator[tuple[tuple[int, ...], PreparedImage | None]]:
        before: dict[int, Sequence[int]] = {}
        for question in self.loop._running:
            before |= {b.seq: b.token_ids for b in question.branches.values() if b.seq is not None}
        for round_ in self.loop._judging._rounds.values():
            before |= {job.seq: round_.prompts[i].token_ids for i, job in round_.jobs.items()}
        for row in batch.rows:
            track = self.loop._decoder._tracks[row.seq]
            token_ids = (*before[row.seq], *track.token_ids)
            assert row.last_token == token_ids[-1]
            assert self.cache.pool.length(row.seq) == row.position == len(token_ids) - 1
            yield token_ids, track.question.image if row.image is not None else None

    def check_rows(self, checkpoint: TinyCheckpoint, tolerance: float = 1e-4) -> int:
        """Compare every kept row with a full recompute of its tokens; returns how many."""
        longest_first = sorted(self.rows, key=lambda row: -len(row.token_ids))
        known: dict[tuple[object, tuple[int, ...]], Tensor] = {}
        for row in longest_first:
            image_key = row.image.key if row.image is not None else None
            if (image_key, row.token_ids) not in known:
                logits = checkpoint.logits(row.token_ids, row.image)
                for length in range(1, len(row.token_ids) + 1):
                    known.setdefault((image_key, row.token_ids[:length]), logits[length - 1])
            expected = known[image_key, row.token_ids]
            assert not row.logits.isnan().any(), "poison was read"
            torch.testing.assert_close(row.logits, expected, rtol=0, atol=tolerance)
        return len(longest_first)


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Keep the loop's thread from its next turn, so that what is submitted starts together."""
    go, is_waiting = threading.Event(), threading.Event()

    def wait() -> None:
        is_waiting.set()
        go.wait(60)

    engine._loop.call(wait)
    assert is_waiting.wait(60)
    try:
        yield
    finally:
        go.set()


def choices(answer: Answer) -> list[object]:
    """Everything that was chosen: tokens, ends, winners and matches, without floating point."""
    return [
        (
            stage.name,
            [(c.token_ids, c.text, c.finish_reason) for c in stage.candidates],
            [(m.first, m.second, m.winner, m.kind, m.verdict_text) for m in stage.matches],
            stage.winner,
        )
        for stage in answer.stages
    ]


def assert_nothing_held(engine: Engine) -> None:
    """No block, reservation, sequence, decode row or image slot is in use."""
    stats = engine.stats()
    held = {name: stats[name] for name in ("num_used", "num_reserved", "num_sequences")}
    assert held == {"num_used": 0, "num_reserved": 0, "num_sequences": 0}
    assert stats["num_free"] == stats["num_blocks"]
    assert stats["num_images_in_use"] == 0
    loop = engine._loop
    for work in (loop._running, loop._waiting, loop._prefills, loop._decoder):
        assert not work
    assert not any(loop._decoder._promised.values())
    assert not loop._judging._rounds
    engine.kv_cache.pool.check()
