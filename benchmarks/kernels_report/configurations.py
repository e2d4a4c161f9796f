"""Every variant that the wrappers launch for the published sizes, from the passes that launch it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from stagebeam.benchmarks.kernels_report.passes import MetaEngine, recorded_calls
from stagebeam.benchmarks.kernels_report.sizes import triton_ops
from stagebeam.benchmarks.kernels_report.variant import Variant, distinct
from stagebeam.kernels.branch_attention.triton_kernel import branch_attention_unshared
from stagebeam.kernels.triton_launch import Launch, record_launches

BEAM_SIZES = (1, 4, 8, 32)
PREFILLS = ((1, 600, 608), (8, 4, 608), (8, 8, 608), (8, 200, 800))  # sequences, rows, tokens
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The 90B is for bf16 only: it differs from the 11B in widths and heads a KV head. float32 serves
# comparisons, not speed, and has no budgets.
FULL = (("11B", "bf16"), ("11B", "fp16"), ("90B", "bf16"))
REDUCED = (("11B", "bf16"),)


def variants(kinds: Sequence[tuple[str, str]] = FULL) -> list[Variant]:
    """The distinct variants of these (size, dtype)."""
    launches: list[Launch] = []
    for size, dtype in kinds:
        launches += launches_of(size, DTYPES[dtype])
    return distinct(launches)


def launches_of(size: str, dtype: torch.dtype) -> Iterable[Launch]:
    """The launches of every kind of pass."""
    with recorded_calls() as (ops, calls):
        engine = MetaEngine(size, dtype, ops)
        for num_rows in BEAM_SIZES:
            engine.decode(num_rows)
        for prefill in PREFILLS:
            engine.prefill(*prefill)
        engine.encode_image()
        engine.fork(4)
        engine.merge(4)
    launches = [launch for call in calls for launch in call.launches]
    unshared = replace(triton_ops(), branch_attention=branch_attention_unshared)
    with record_launches() as recorded:
        MetaEngine(size, dtype, unshared).decode(4)
    return launches + recorded
