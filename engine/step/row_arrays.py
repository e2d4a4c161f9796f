"""A decode batch's rows as arrays that a step reads and advances in place.

Used where the step runs by itself for a while: in a CUDA graph and in the native program. Built when
a row joins or leaves. Knows no policy and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagebeam.bindings._core import BlockPool
from stagebeam.engine.step.batch import DecodeRow, signed_64

_UNLIMITED = 1 << 30


def runs(values: Sequence[int]) -> list[int]:
    """Where runs of one value begin, and the end."""
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    return [*starts, len(values)]


def row_arrays(
    rows: Sequence[DecodeRow], pool: BlockPool, total: int, trunk_width: int, tail_width: int
) -> dict[str, np.ndarray]:
    """The arrays of `total` rows: a padding row is a group of its own, without trunk, tail and image.

    trunk_width, tail_width: columns of the block tables
    """
    params = [row.sampling for row in rows]

    def pad(values: Sequence[object], fill: object, dtype: type) -> np.ndarray:
        array: np.ndarray = np.full(total, fill, dtype=dtype)
        array[: len(values)] = values
        return array

    starts, row_group, offsets = _grouped([row.group for row in rows], total)
    trunk_blocks = [row.trunk_blocks for row in rows]
    trunk_tables = np.full((total, trunk_width), -1, dtype=np.int32)
    tail_tables = np.full((total, tail_width), -1, dtype=np.int32)
    for g, i in enumerate(starts):
        trunk_tables[g, : trunk_blocks[i]] = pool.block_table(rows[i].seq)[: trunk_blocks[i]]
    for i, row in enumerate(rows):
        pool.fill_block_tables([row.seq], tail_tables[i : i + 1], row.trunk_blocks)
    images = [row.image for row in rows]
    slots = [image.slot if image else -1 for image in images]
    image_starts, _, image_offsets = _grouped(slots, total)
    return {
        "token_ids": pad([row.last_token for row in rows], 0, np.int64),
        "positions": pad([row.position for row in rows], 0, np.int64),
        "seeds": pad([signed_64(row.seed) for row in rows], 0, np.int64),
        "uids": pad([signed_64(row.uid) for row in rows], 0, np.int64),
        "steps": pad([row.step for row in rows], 0, np.int32),
        "states": pad([row.state for row in rows], 0, np.int32),
        "temperature": pad([p.temperature for p in params], 0, np.float32),
        "top_k": pad([p.top_k for p in params], 0, np.int32),
        "top_p": pad([p.top_p for p in params], 1, np.float32),
        "min_p": pad([p.min_p for p in params], 0, np.float32),
        "goal_masks": pad([row.goal_mask for row in rows], 0, np.int64),
        "ignore_eos": pad([p.ignore_eos for p in params], True, np.bool_),
        "max_tokens": pad([row.max_tokens for row in rows], _UNLIMITED, np.int32),
        "is_live": pad([True] * len(rows), False, np.bool_),
        "group_offsets": offsets,
        "row_group": row_group,
        "trunk_blocks": pad(trunk_blocks, 0, np.int64),
        "trunk_lens": pad([trunk_blocks[i] * pool.block_size for i in starts], 0, np.int32),
        "trunk_tables": trunk_tables,
        "tail_tables": tail_tables,
        "image_offsets": image_offsets,
        "image_slots": pad([slots[i] for i in image_starts], -1, np.int32),
        "slots": pad(slots, -1, np.int32),
        "kv_lens": pad([image.valid_tokens if image else 1 for image in images], 1, np.int32),
    }


def _grouped(values: Sequence[int], total: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Runs of one value, then a run for each padding row, then empty ones.

    Returns the runs' first rows, each row's run int32 [total], and the offsets int32 [total + 1].
    """
    *starts, _ = runs(values)
    is_first = np.zeros(total, dtype=np.int32)
    is_first[starts] = 1
    is_first[len(values) :] = 1
    offsets = np.full(total + 1, total, dtype=np.int32)
    firsts = np.flatnonzero(is_first)
    offsets[: len(firsts)] = firsts
    return starts, np.cumsum(is_first, dtype=np.int32) - 1, offsets
