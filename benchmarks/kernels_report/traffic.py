"""Bytes of data that an op must move, bytes that its kernels do move, and the products it makes.

Counted from shapes as the passes record them, where every table is full. Data are numbers of a model;
ids, lengths and tables are left out (well under 1 %). A tile that is read by several programs counts
each time, whether or not a cache serves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stagebeam.benchmarks.kernels_report.passes import BLOCK_SIZE, OpCall
from stagebeam.kernels.triton_launch import Launch

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Of one op call; `flops` are products and sums of matrix products."""

    least_bytes: int
    moved_bytes: int
    flops: int


def traffic_of(call: OpCall) -> Traffic:
    """An op's call on meta tensors."""
    least, flops = _LEAST[call.op](call.arguments)
    moved = sum(_MOVED[launch.kernel.fn.__name__](launch) for launch in call.launches)
    return Traffic(least_bytes=least, moved_bytes=moved, flops=flops)


def least_bytes(op: str, arguments: Arguments) -> int:
    """What a call of an op with these arguments must move, on any device."""
    return _LEAST[op](arguments)[0]


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# The least: every input once, every output once.


def _norm(a: Arguments) -> tuple[int, int]:
    return 2 * _bytes(a["x"]) + _bytes(a["weight"]), 0


def _add_rms_norm(a: Arguments) -> tuple[int, int]:
    return 4 * _bytes(a["x"]) + _bytes(a["weight"]), 0


def _layer_norm(a: Arguments) -> tuple[int, int]:
    return 2 * _bytes(a["x"]) + _bytes(a["weight"], a["bias"]), 0


def _rotary(a: Arguments) -> tuple[int, int]:
    angles = a["positions"].numel() * a["cos_sin"].shape[1] * a["cos_sin"].element_size()
    return 2 * _bytes(a["q"], a["k"]) + angles, 0


def _silu_mul(a: Arguments) -> tuple[int, int]:
    return _bytes(a["gate_up"]) * 3 // 2, 0


def _store_kv_cache(a: Arguments) -> tuple[int, int]:
    return 2 * _bytes(a["key"], a["value"]), 0


def _copy_blocks(a: Arguments) -> tuple[int, int]:
    caches = [cache for layer in a["kv_layers"] for cache in layer]
    return 2 * len(a["pairs"]) * sum(_bytes(cache[0]) for cache in caches), 0


def _branch_attention(a: Arguments) -> tuple[int, int]:
    q, cache = a["q"], a["k_cache"]
    trunks = a["trunk_tables"].numel() * BLOCK_SIZE
    tails = a["tail_tables"].numel() * BLOCK_SIZE
    a_row = a["trunk_tables"].shape[1] * BLOCK_SIZE + a["tail_tables"].shape[1] * BLOCK_SIZE
    return 2 * _bytes(q) + (trunks + tails) * _kv_bytes(cache), 4 * q.numel() * a_row


def _prefill_attention(a: Arguments) -> tuple[int, int]:
    q, num_keys = a["q"], a["max_seqlen_k"]
    keys = len(a["seq_lens"]) * num_keys
    seen = num_keys - a["max_seqlen_q"] / 2  # of a row, on average
    return 2 * _bytes(q) + keys * _kv_bytes(a["k_cache"]), int(4 * q.numel() * seen)


def _cross_attention(a: Arguments) -> tuple[int, int]:
    q, num_keys = a["q"], a["k_slots"].shape[1]
    keys = len(a["group_slots"]) * num_keys
    return 2 * _bytes(q) + keys * _kv_bytes(a["k_slots"]), 4 * q.numel() * num_keys


def _merge_states(a: Arguments) -> tuple[int, int]:
    return 3 * _bytes(a["out_a"], a["lse_a"]), 0


def _sample_step(a: Arguments) -> tuple[int, int]:
    return _bytes(a["logits"]), 0


def _verdict_logits(a: Arguments) -> tuple[int, int]:
    ids, hidden = a["ids"], a["hidden"]
    read = (ids.numel() + len(hidden)) * hidden.shape[1] * hidden.element_size()
    return read + 4 * ids.numel(), 2 * ids.numel() * hidden.shape[1]


def _kv_bytes(cache: Tensor) -> int:
    """Of one token's key and value in one layer."""
    return 2 * _bytes(cache[0, 0])


_LEAST: dict[str, Callable[[Arguments], tuple[int, int]]] = {
    "rms_norm": _norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "rotary_": _rotary,
    "silu_mul": _silu_mul,
    "store_kv_cache": _store_kv_cache,
    "copy_blocks": _copy_blocks,
    "branch_attention": _branch_attention,
    "prefill_attention": _prefill_attention,
    "cross_attention": _cross_attention,
    "merge_states": _merge_states,
    "sample_step": _sample_step,
    "verdict_logits": _verdict_logits,
}


# What the kernels' programs load and store.


def _per_program(launch: Launch, *names: str) -> int:
    """Vectors that every program of the first axis reads again."""
    return launch.grid[0] * _bytes(*(launch.arguments[name] for name in names))


def _moved_norm(launch: Launch) -> int:
    a = launch.arguments
    return _bytes(a["x_ptr"], a["out_ptr"]) + _per_program(launch, "weight_ptr")


def _moved_add_rms_norm(launch: Launch) -> int:
    a = launch.arguments
    streams = (a["x_ptr"], a["residual_ptr"], a["normed_ptr"], a["sum_ptr"])
    return _bytes(*streams) + _per_program(launch, "weight_ptr")


def _moved_layer_norm(launch: Launch) -> int:
    return _moved_norm(launch) + _per_program(launch, "bias_ptr")


def _moved_rotary(launch: Launch) -> int:
    a = launch.arguments
    angles = launch.grid[0] * a["cos_sin_ptr"].shape[1] * a["cos_sin_ptr"].element_size()
    return 2 * _bytes(a["q_ptr"], a["k_ptr"]) + angles


def _moved_silu_mul(launch: Launch) -> int:
    return _bytes(launch.arguments["gate_up_ptr"], launch.arguments["out_ptr"])


def _moved_store_kv_cache(launch: Launch) -> int:
    return 2 * _bytes(launch.arguments["key_ptr"], launch.arguments["value_ptr"])


def _moved_copy_blocks(launch: Launch) -> int:
    a = launch.arguments
    num_pairs, num_caches, _ = launch.grid
    return 2 * num_pairs * num_caches * a["NUM_WORDS"] * a["word_ptr"].element_size()


def _moved_branch_parts(launch: Launch) -> int:
    """A trunk is read once a tile of its rows, q once an item, and the parts are written."""
    a = launch.arguments
    q, items, num_rows = a["q_ptr"], launch.grid[0], len(a["q_ptr"])
    trunk_readers = a["num_trunk_items"] // max(1, a["num_trunk_splits"])
    tokens = trunk_readers * a["trunk_width"] + num_rows * a["tail_width"]
    rows_a_tile = a["BLOCK_M"] // a["HEADS_PER_KV"] if a["IS_SHARED"] else 1
    trunk_rows = min(rows_a_tile * trunk_readers, num_rows)  # one group, as the passes have it
    q_reads = trunk_rows * a["num_trunk_splits"] + items - a["num_trunk_items"]
    return (
        tokens * BLOCK_SIZE * _kv_bytes(a["k_cache_ptr"])
        + q_reads * _bytes(q[0])
        + _bytes(a["parts_ptr"], a["lse_ptr"])
    )


def _moved_merge_splits(launch: Launch) -> int:
    a = launch.arguments
    return _bytes(a["parts_ptr"], a["lse_ptr"], a["out_ptr"])


def _moved_cross_attention(launch: Launch) -> int:
    a = launch.arguments
    q, num_tiles = a["q_ptr"], launch.grid[0]
    written = [a["out_ptr"], a["lse_ptr"]] if a["IS_SPLIT"] else [a["out_ptr"]]
    keys = num_tiles * a["num_vision_tokens"] * _kv_bytes(a["k_slots_ptr"])
    return keys + launch.grid[2] * _bytes(q) + _bytes(*written)


def _moved_prefill_attention(launch: Launch) -> int:
    """Each tile reads the keys up to its last row's own; the rows are the last of a full table."""
    a = launch.arguments
    num_tiles, _, num_seqs = launch.grid
    rows_a_tile, num_rows = a["BLOCK_M"] // a["HEADS_PER_KV"], len(a["q_ptr"]) // num_seqs
    first = a["table_width"] * BLOCK_SIZE - num_rows
    ends = (first + min((tile + 1) * rows_a_tile, num_rows) for tile in range(num_tiles))
    keys = num_seqs * sum(ends)
    return keys * _kv_bytes(a["k_cache_ptr"]) + _bytes(a["q_ptr"], a["out_ptr"])


def _moved_merge_states(launch: Launch) -> int:
    a = launch.arguments
    names = ("out_a_ptr", "lse_a_ptr", "out_b_ptr", "lse_b_ptr", "out_ptr", "lse_ptr")
    return _bytes(*(a[name] for name in names))


def _moved_verdict_logits(launch: Launch) -> int:
    a = launch.arguments
    return launch.grid[0] * (2 * a["NUM_COLUMNS"] * a["hidden_ptr"].element_size() + 4)


def _moved_sample_step(launch: Launch) -> int:
    """Without filters: one pass for the largest logit and the weights, one for the choice.

    A filter adds the passes of its bisection, as many as the logits demand (at most 33 each).
    """
    return SAMPLE_PASSES * _bytes(launch.arguments["logits_ptr"])


SAMPLE_PASSES = 2
_MOVED: dict[str, Callable[[Launch], int]] = {
    "rms_norm_kernel": _moved_norm,
    "add_rms_norm_kernel": _moved_add_rms_norm,
    "layer_norm_kernel": _moved_layer_norm,
    "rotary_kernel": _moved_rotary,
    "silu_mul_kernel": _moved_silu_mul,
    "store_kv_cache_kernel": _moved_store_kv_cache,
    "copy_blocks_kernel": _moved_copy_blocks,
    "branch_parts_kernel": _moved_branch_parts,
    "merge_splits_kernel": _moved_merge_splits,
    "cross_attention_kernel": _moved_cross_attention,
    "prefill_attention_kernel": _moved_prefill_attention,
    "merge_states_kernel": _moved_merge_states,
    "verdict_logits_kernel": _moved_verdict_logits,
    "sample_step_kernel": _moved_sample_step,
}
