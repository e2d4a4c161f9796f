"""Passes on an idle engine, as sweeps and calibration time them."""

from __future__ import annotations

import pytest

from stagebeam.benchmarks.speed.bare import BareDecode
from stagebeam.engine.engine import Engine


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_batches_follow_each_other_on_one_engine(dtype: str) -> None:
    """Each is a batch of its own, however alike they are, and gives its blocks back."""
    with Engine(dtype=dtype, kv_cache_bytes=8 << 20) as engine:
        for rows, trunk_tokens in ((1, 20), (3, 20), (3, 40)):
            decode = BareDecode(engine, rows=rows, trunk_tokens=trunk_tokens, max_steps=4)
            decode.step()
            decode.step()
            assert [row.position for row in decode._batch.rows] == [trunk_tokens + 2] * rows
            decode.close()
            assert engine.stats()["num_free"] == engine.stats()["num_blocks"]
