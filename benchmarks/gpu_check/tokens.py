"""Greedy tokens of the bundled model on the device against the CPU's, in float32."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.benchmarks.gpu_check.checks import Outcome
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams


def first_difference(got: Sequence[int], expected: Sequence[int]) -> int | None:
    """Where two token lists part; None where they are equal."""
    for i, (a, b) in enumerate(zip(got, expected)):
        if a != b:
            return i
    return None if len(got) == len(expected) else min(len(got), len(expected))


def greedy_tokens(device: str, num_tokens: int) -> list[int]:
    """The bundled model's greedy continuation in float32."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    with Engine(device=device, dtype="float32", kv_cache_bytes=64 << 20) as engine:
        return list(engine.generate("What is at the top left?", sampling)[0].outputs[0].token_ids)


def same_tokens(device: str, num_tokens: int = 64) -> Outcome:
    """The device's captured step against the CPU's plain one."""
    got, expected = greedy_tokens(device, num_tokens), greedy_tokens("cpu", num_tokens)
    at = first_difference(got, expected)
    return at is None, {"num_tokens": len(expected), "first_difference": at}
