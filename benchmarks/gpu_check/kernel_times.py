"""Each op of a decode step at the 11B's sizes: its time against the bytes that it must move.

The floor is the op's least bytes over the bandwidth that a large copy reaches on the same device.
The unshared branch attention is timed beside the shared one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stagebeam.benchmarks.gpu_check.checks import Outcome
from stagebeam.benchmarks.gpu_check.clock import call_seconds, copy_bandwidth
from stagebeam.benchmarks.kernels_report.traffic import least_bytes
from stagebeam.kernels.registry import Ops

BLOCK_SIZE = 16
BEAM_SIZES = (1, 4, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a step's ops see: by default the 11B deep in a question with an image of four tiles."""

    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    trunk_tokens: int = 1024
    tail_tokens: int = 256
    vision_tokens: int = 6404


def op_arguments(
    num_rows: int, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Every memory-bound op's arguments for one layer: one question, `num_rows` branches, all full."""
    s = sizes
    sm_scale = s.head_dim**-0.5

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def ints(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int32, device=device)

    trunk_blocks, tail_blocks = s.trunk_tokens // BLOCK_SIZE, s.tail_tokens // BLOCK_SIZE
    num_blocks = trunk_blocks + num_rows * tail_blocks
    kv = numbers(num_blocks, BLOCK_SIZE, s.num_kv_heads, s.head_dim)
    x, weight = numbers(num_rows, s.hidden_size), numbers(s.hidden_size)
    q = numbers(num_rows, s.num_heads, s.head_dim)
    k = numbers(num_rows, s.num_kv_heads, s.head_dim)
    # Scattered as a used pool is, so that no block follows its neighbour.
    ids = torch.randperm(num_blocks).to(torch.int32).to(device)
    image = numbers(2, s.vision_tokens, s.num_kv_heads, s.head_dim)
    one_group = {"group_offsets": ints([0, num_rows]), "max_group_rows": num_rows}
    return {
        "rms_norm": {"x": x, "weight": weight, "eps": 1e-5},
        "add_rms_norm": {"x": x, "residual": x, "weight": weight, "eps": 1e-5},
        "silu_mul": {"gate_up": numbers(num_rows, 2 * s.intermediate_size)},
        "rotary_": {
            "q": q.clone(),
            "k": k.clone(),
            "cos_sin": torch.randn(2048, s.head_dim, device=device),
            "positions": torch.full((num_rows,), 1279, device=device),
        },
        "store_kv_cache": {
            "key": k,
            "value": k,
            "k_cache": kv.clone(),
            "v_cache": kv.clone(),
            "slot_mapping": ints([i * BLOCK_SIZE for i in range(num_rows)]),
        },
        "branch_attention": {
            "q": q,
            "k_cache": kv,
            "v_cache": kv.clone(),
            **one_group,
            "row_group": ints([0] * num_rows),
            "trunk_tables": ids[:trunk_blocks].view(1, -1),
            "trunk_lens": ints([s.trunk_tokens]),
            "tail_tables": ids[trunk_blocks:].view(num_rows, -1),
            "tail_lens": ints([s.tail_tokens] * num_rows),
            "sm_scale": sm_scale,
        },
        "cross_attention": {
            "q": q,
            "k_slots": image,
            "v_slots": image.clone(),
            **one_group,
            "group_slots": ints([1]),
            "kv_lens": ints([s.vision_tokens] * num_rows),
            "sm_scale": sm_scale,
        },
        "copy_blocks": {
            "kv_layers": [(kv.clone(), kv.clone())],
            "pairs": ints([[i, num_blocks - 1 - i] for i in range(min(num_rows, num_blocks // 2))]),
        },
    }


def kernel_times(
    ops: Ops,
    device: torch.device,
    *,
    unshared: Callable[..., Any] | None,
    sizes: Sizes | None = None,
    dtype: torch.dtype = torch.bfloat16,
    bandwidth_bytes: int = 1 << 30,
    num_repeats: int = 20,
) -> Outcome:
    """Microseconds, and the share of the floor that is reached; measured, nothing to pass."""
    bandwidth = copy_bandwidth(device, bandwidth_bytes, num_repeats)
    details: dict[str, Any] = {"copy_gb_per_second": bandwidth / 1e9}
    for num_rows in BEAM_SIZES:
        timed: dict[str, Any] = {}
        for op, arguments in op_arguments(num_rows, sizes or Sizes(), dtype, device).items():
            function = getattr(ops, op)
            seconds = call_seconds(partial(function, **arguments), device, num_repeats)
            floor = least_bytes(op, arguments) / bandwidth
            timed[op] = {"us": 1e6 * seconds, "floor_us": 1e6 * floor, "share": floor / seconds}
            if op == "branch_attention" and unshared is not None:
                seconds = call_seconds(partial(unshared, **arguments), device, num_repeats)
                timed["branch_attention_unshared"] = {"us": 1e6 * seconds}
        details[f"rows_{num_rows}"] = timed
    return True, details
