"""This CPU's prices, from small drawn models: never from the model that is to be predicted.

Five Llamas that differ in depth, width and vocabulary give five step times a number of rows, and so
the price of a step, a layer, a weight's byte and a vocabulary entry; two trunk lengths give attention's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stagebeam.benchmarks.speed.bare import prefill_seconds, step_seconds
from stagebeam.benchmarks.speed.costs import Calibrated, text_parameters
from stagebeam.benchmarks.speed.floor import WEIGHT_BYTES
from stagebeam.benchmarks.speed.synthetic import SyntheticSize, write_synthetic
from stagebeam.engine.engine import Engine
from stagebeam.engine.models.spec import ModelSpec

ROWS = (1, 2, 4, 8, 16, 32, 64)
SIZES = (
    SyntheticSize(num_layers=2, hidden_size=192, vocab_size=1024),
    SyntheticSize(num_layers=12, hidden_size=192, vocab_size=1024),
    SyntheticSize(num_layers=4, hidden_size=960, vocab_size=1024),
    SyntheticSize(num_layers=2, hidden_size=192, vocab_size=12288),
    SyntheticSize(num_layers=2, hidden_size=192, vocab_size=98304),
)
_WIDEST = 2  # products dominate, and its attention gives attention's price
_SHORT, _LONG, _PREFILL = 64, 2048, 384
_MOST_LONG_ROWS = (
    16  # attention over a long trunk is timed up to here, and beyond it grows with the rows
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTimes:
    """What the drawn models took, seconds.

    steps: [len(SIZES), len(rows)], over a short trunk; long_steps: of the widest, over a long one
    prefill: of the widest
    """

    specs: tuple[ModelSpec, ...]
    rows: tuple[int, ...]
    steps: np.ndarray
    long_steps: np.ndarray
    prefill: float
    kv_bytes: int

    def best(self, other: ModelTimes) -> ModelTimes:
        """The quicker of two runs, time by time: interference only ever slows."""
        return replace(
            self,
            steps=np.minimum(self.steps, other.steps),
            long_steps=np.minimum(self.long_steps, other.long_steps),
            prefill=min(self.prefill, other.prefill),
        )


def calibrate(
    dtype: str = "float32", backend: str = "auto", rows: Sequence[int] = ROWS, num_steps: int = 6
) -> Calibrated:
    """Time the models and solve for the prices."""
    return prices_of(time_models(dtype, backend, rows, num_steps), dtype)


def time_models(
    dtype: str, backend: str, rows: Sequence[int] = ROWS, num_steps: int = 6
) -> ModelTimes:
    """Draw the models and time their passes."""
    steps = np.empty((len(SIZES), len(rows)))
    specs: list[ModelSpec] = []

    def times(engine: Engine, trunk_tokens: int, rows: Sequence[int]) -> list[float]:
        return [
            step_seconds(
                engine, rows=n, trunk_tokens=trunk_tokens, num_steps=num_steps, is_best=True
            )
            for n in rows
        ]

    with tempfile.TemporaryDirectory() as scratch:
        for i, size in enumerate(SIZES):
            folder = write_synthetic(size, Path(scratch) / str(i))
            with Engine(folder, dtype=dtype, backend=backend, kv_cache_bytes=192 << 20) as engine:
                specs.append(engine.spec)
                steps[i] = times(engine, _SHORT, rows)
                if i == _WIDEST:
                    long_steps = times(engine, _LONG, [n for n in rows if n <= _MOST_LONG_ROWS])
                    prefill = prefill_seconds(
                        engine, num_tokens=_PREFILL, has_image=False, is_best=True
                    )
                    kv_bytes = engine.kv_cache.layers[0][0].element_size()
    return ModelTimes(
        specs=tuple(specs),
        rows=tuple(rows),
        steps=steps,
        long_steps=np.array(long_steps),
        prefill=prefill,
        kv_bytes=kv_bytes,
    )


def prices_of(times: ModelTimes, dtype: str) -> Calibrated:
    """The prices that explain the times."""
    weight_bytes = WEIGHT_BYTES[dtype]
    prices = _solve(times.specs, times.steps, weight_bytes)
    return Calibrated(
        name=f"this CPU, {dtype}",
        rows=times.rows,
        per_step=tuple(prices[0].tolist()),
        per_layer=tuple(prices[1].tolist()),
        per_weight_byte=tuple(prices[2].tolist()),
        per_vocabulary_entry=tuple(prices[3].tolist()),
        per_kv_number=_attention(times),
        prefill_flops=2 * text_parameters(times.specs[_WIDEST]) * _PREFILL / times.prefill,
        weight_bytes=weight_bytes,
        kv_bytes=times.kv_bytes,
    )


def _attention(times: ModelTimes) -> tuple[float, ...]:
    """Seconds a number of the trunk's cache, for each number of rows that share it."""
    spec, prices = times.specs[_WIDEST], []
    numbers = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * (_LONG - _SHORT)
    for j, count in enumerate(times.rows):
        if j < len(times.long_steps):
            grown = times.long_steps[j] - times.steps[_WIDEST, j]
            prices.append(max(float(grown), 0.0) / numbers)
        else:
            prices.append(prices[-1] * count / times.rows[j - 1])
    return tuple(prices)


def _solve(specs: Sequence[ModelSpec], times: np.ndarray, weight_bytes: float) -> np.ndarray:
    """[4, num_rows] prices of a step, a layer, a weight's byte and a vocabulary entry, none negative.

    Least squares over what may still be positive: a price that comes out negative is noise, and is
    left out of the next try.
    """
    design = np.array(
        [
            [1.0, s.num_layers, s.num_decode_parameters * weight_bytes, float(s.vocab_size)]
            for s in specs
        ]
    )
    prices = np.zeros((4, times.shape[1]))
    for j in range(times.shape[1]):
        kept = [0, 1, 2, 3]
        while kept:
            weights = 1 / times[:, j : j + 1]  # relative errors
            found = np.linalg.lstsq(design[:, kept] * weights, np.ones(len(specs)), rcond=None)[0]
            if (found >= 0).all():
                prices[kept, j] = found
                break
            kept.pop(int(np.argmin(found)))
    return prices
