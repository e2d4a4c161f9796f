"""This CPU's prices, from small drawn models: never from the model that is to be predicted.

Four Llamas that differ in depth, width and vocabulary give four step times a number of rows, and so
the price of a step, a layer, a weight's byte and a vocabulary entry; two trunk lengths give attention's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
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
    SyntheticSize(num_layers=6, hidden_size=768, vocab_size=1024),
    SyntheticSize(num_layers=2, hidden_size=192, vocab_size=65536),
)
_SHORT, _LONG, _PREFILL = 64, 2048, 384


def calibrate(
    dtype: str = "float32", backend: str = "auto", rows: Sequence[int] = ROWS, num_steps: int = 6
) -> Calibrated:
    """Time the four models and solve for the prices."""
    rows = tuple(rows)
    times = np.empty((len(SIZES), len(rows)))
    weight_bytes, specs = WEIGHT_BYTES[dtype], []
    with tempfile.TemporaryDirectory() as scratch:
        for i, size in enumerate(SIZES):
            folder = write_synthetic(size, Path(scratch) / str(i))
            with Engine(folder, dtype=dtype, backend=backend, kv_cache_bytes=192 << 20) as engine:
                specs.append(engine.spec)
                for j, count in enumerate(rows):
                    times[i, j] = step_seconds(
                        engine, rows=count, trunk_tokens=_SHORT, num_steps=num_steps, is_best=True
                    )
                if i == 2:  # the widest: products dominate
                    once, each = _attention(engine, times[i], rows, num_steps)
                    seconds = prefill_seconds(
                        engine, num_tokens=_PREFILL, has_image=False, is_best=True
                    )
                    flops = 2 * text_parameters(engine.spec) * _PREFILL / seconds
                    kv_bytes = engine.kv_cache.layers[0][0].element_size()
    prices = _solve(specs, times, weight_bytes)
    return Calibrated(
        name=f"this CPU, {dtype}",
        rows=rows,
        per_step=tuple(prices[0].tolist()),
        per_layer=tuple(prices[1].tolist()),
        per_weight_byte=tuple(prices[2].tolist()),
        per_vocabulary_entry=tuple(prices[3].tolist()),
        per_kv_number=float(once),
        per_row_kv_number=float(each),
        prefill_flops=flops,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
    )


def _attention(
    engine: Engine, short: np.ndarray, rows: tuple[int, ...], num_steps: int
) -> tuple[float, float]:
    """Seconds a cached number: read once for all rows, and again for each row."""
    spec = engine.spec
    numbers = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * (_LONG - _SHORT)
    most = min(len(rows) - 1, 4)
    grown = [
        step_seconds(engine, rows=rows[j], trunk_tokens=_LONG, num_steps=num_steps, is_best=True)
        - short[j]
        for j in (0, most)
    ]
    few, many = (max(seconds, 0.0) / numbers for seconds in grown)
    if rows[most] == rows[0]:
        return few, 0.0
    each = max((many - few) / (rows[most] - rows[0]), 0.0)
    return max(few - rows[0] * each, 0.0), each


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
