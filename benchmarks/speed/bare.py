"""Single passes on an idle engine, without questions: what sweeps and calibration time.

Uses the engine's own runner, caches and kernels; the loop's thread must have nothing to do meanwhile.
Invariant: a closed object has given all its blocks back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams
from stagebeam.engine.step.batch import DecodeBatch, DecodeRow, ImageRef, PrefillChunk

_IMAGE_KEY = b"bare"


class BareDecode:
    """Decode steps of `num_groups` trunks with `rows` branches each."""

    def __init__(
        self,
        engine: Engine,
        *,
        rows: int,
        trunk_tokens: int,
        max_steps: int,
        num_groups: int = 1,
        has_image: bool = True,
        temperature: float = SamplingParams().temperature,
    ) -> None:
        self._engine = engine
        self._runner = engine._loop._runner
        pool = engine.kv_cache.pool
        self._slot = _take_image(engine) if has_image and engine.spec.vision else None
        self._seqs: list[int] = []
        self._batch = DecodeBatch(engine.device)
        sampling = SamplingParams(temperature=temperature, max_tokens=max_steps, ignore_eos=True)
        for group in range(num_groups):
            root = pool.create(trunk_tokens)
            assert root is not None, "the engine's cache is too small for this sweep"
            self._seqs.append(root)
            engine.kv_cache.append(root, trunk_tokens)
            seqs = pool.fork(root, rows, max_steps)
            assert seqs is not None, "the engine's cache is too small for this sweep"
            self._seqs += seqs
            shared = pool.num_shared_blocks(seqs)
            self._batch.add(
                [
                    DecodeRow(
                        seq=seq,
                        last_token=1,
                        position=trunk_tokens,
                        seed=group,
                        uid=i,
                        sampling=sampling,
                        max_tokens=max_steps,
                        state=0,
                        goal_mask=0,
                        group=group,
                        trunk_blocks=shared,
                        image=self._slot,
                    )
                    for i, seq in enumerate(seqs)
                ]
            )

    def step(self, may_run_ahead: bool = False) -> int:
        """One decode step of every branch, or as many as the engine takes at once; their number."""
        return self._runner.decode(self._batch, may_run_ahead).num_steps

    def close(self) -> None:
        self._engine.kv_cache.pool.release(self._seqs)
        if self._slot is not None:
            self._engine.image_slots.release(self._slot.slot)


def step_seconds(
    engine: Engine,
    *,
    rows: int,
    trunk_tokens: int,
    num_steps: int = 8,
    num_groups: int = 1,
    is_best: bool = False,
) -> float:
    """The median of `num_steps` decode steps after two that warm up; or the best of them.

    The best is what calibration wants: interference only ever slows a step down.
    """
    decode = BareDecode(
        engine,
        rows=rows,
        trunk_tokens=trunk_tokens,
        max_steps=num_steps + 4,
        num_groups=num_groups,
    )
    try:
        return repeated_seconds(decode.step, num_steps, is_best)
    finally:
        decode.close()


def prefill_seconds(
    engine: Engine,
    *,
    num_tokens: int,
    num_repeats: int = 3,
    has_image: bool = True,
    is_best: bool = False,
) -> float:
    """The median (or best) time of one prefill pass over `num_tokens` tokens of one sequence."""
    pool = engine.kv_cache.pool
    image = _take_image(engine) if has_image and engine.spec.vision else None

    def once() -> None:
        seq = pool.create(num_tokens)
        assert seq is not None, "the engine's cache is too small for this sweep"
        chunk = PrefillChunk(
            seq=seq,
            token_ids=[1] * num_tokens,
            start=0,
            slots=engine.kv_cache.append(seq, num_tokens),
            image=image,
            wants_hidden=True,
        )
        engine._loop._runner.prefill([chunk])
        pool.release([seq])

    try:
        return repeated_seconds(once, num_repeats, is_best)
    finally:
        if image is not None:
            engine.image_slots.release(image.slot)


def repeated_seconds(
    function: Callable[[], object], num_repeats: int, is_best: bool = False
) -> float:
    """The median (or best) duration of a call, after two calls that warm up."""
    times = []
    for _ in range(num_repeats + 2):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return float(min(times[2:]) if is_best else np.median(times[2:]))


def _take_image(engine: Engine) -> ImageRef:
    taken = engine.image_slots.acquire(_IMAGE_KEY)
    assert taken is not None, "every image slot is in use"
    return ImageRef(slot=taken[0], position=0, valid_tokens=engine.spec.tokens_per_tile)
