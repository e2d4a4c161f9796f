"""A decode step's ops on the meta device: shapes alone, so nothing may look at a value.

Of the Triton kernels this is the wrappers: what they would launch is noted down, nothing runs.
"""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from stagebeam.kernels.registry import OPS, Ops

NUM_ROWS, NUM_GROUPS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 6, 2, 32, 4, 2, 8, 50


@pytest.fixture(params=["reference", "triton_kernel"])
def ops(request: pytest.FixtureRequest) -> Ops:
    """All ops of one kind, whether or not this machine can run them."""
    if request.param == "triton_kernel":
        pytest.importorskip("triton")
    modules = {op: import_module(f"stagebeam.kernels.{op}.{request.param}") for op in OPS}
    return Ops(**{op: getattr(module, op) for op, module in modules.items()})


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int32)


def longs(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int64)


def test_every_op_of_a_decode_step(ops) -> None:
    x, weight = empty(NUM_ROWS, HIDDEN), empty(HIDDEN)
    assert ops.rms_norm(x, weight, 1e-5).shape == x.shape
    assert [part.shape for part in ops.add_rms_norm(x, x, weight, 1e-5)] == [x.shape] * 2
    assert ops.layer_norm(x, weight, weight, 1e-5).shape == x.shape
    assert ops.silu_mul(empty(NUM_ROWS, 2 * HIDDEN)).shape == x.shape

    q = empty(NUM_ROWS, HEADS, HEAD_DIM)
    k, v = empty(NUM_ROWS, KV_HEADS, HEAD_DIM), empty(NUM_ROWS, KV_HEADS, HEAD_DIM)
    k_cache = empty(20, 16, KV_HEADS, HEAD_DIM)
    v_cache = empty(20, 16, KV_HEADS, HEAD_DIM)
    ops.rotary_(q, k, empty(100, HEAD_DIM), longs(NUM_ROWS))
    ops.store_kv_cache(k, v, k_cache, v_cache, ints(NUM_ROWS))
    ops.copy_blocks([(k_cache, v_cache)], ints(3, 2))
    for trunk_blocks in (0, 4):
        out = ops.branch_attention(
            *(q, k_cache, v_cache, ints(NUM_GROUPS + 1), ints(NUM_ROWS)),
            *(ints(NUM_GROUPS, trunk_blocks), ints(NUM_GROUPS)),
            *(ints(NUM_ROWS, 3), ints(NUM_ROWS), 4, 0.3),
        )
        assert out.shape == q.shape
    for vision_tokens in (16, 6404):
        slots = empty(3, vision_tokens, KV_HEADS, HEAD_DIM)
        groups = ints(NUM_GROUPS + 1), ints(NUM_GROUPS), ints(NUM_ROWS)
        assert ops.cross_attention(q, slots, slots, *groups, 4, 0.3).shape == q.shape

    lm_head = empty(VOCAB, HIDDEN)
    assert ops.verdict_logits(x, lm_head, longs(NUM_ROWS, 2)).shape == (NUM_ROWS, 2)
    tokens, logprobs, states, finish = ops.sample_step(
        *(empty(NUM_ROWS, VOCAB), longs(NUM_ROWS), longs(NUM_ROWS), ints(NUM_ROWS)),
        *(empty(NUM_ROWS), ints(NUM_ROWS), empty(NUM_ROWS), empty(NUM_ROWS)),
        *(empty(9, VOCAB, dtype=torch.int16), ints(9), ints(NUM_ROWS), longs(NUM_ROWS)),
        *(longs(2), empty(NUM_ROWS, dtype=torch.bool), ints(NUM_ROWS)),
    )
    for got, dtype in (
        (tokens, torch.int64),
        (logprobs, torch.float32),
        (states, torch.int32),
        (finish, torch.int8),
    ):
        assert got.shape == (NUM_ROWS,)
        assert got.dtype == dtype


def test_prefill_keeps_its_shape(ops) -> None:
    """Prefill packs ragged work by its lengths; without them it has only the shape to give."""
    q, cache = empty(NUM_ROWS, HEADS, HEAD_DIM), empty(20, 16, KV_HEADS, HEAD_DIM)
    lens = ints(NUM_GROUPS + 1), ints(NUM_GROUPS), ints(NUM_GROUPS, 4)
    assert ops.prefill_attention(q, cache, cache, *lens, 4, 60, 0.3).shape == q.shape


def test_the_triton_sampler_is_one_launch_whatever_the_rows_ask_for() -> None:
    launch = pytest.importorskip("stagebeam.kernels.triton_launch", exc_type=ImportError)
    from stagebeam.kernels.sample_step.triton_kernel import sample_step

    with launch.record_launches() as launches:
        for vocab_size in (5, 50, 128_256):
            sample_step(
                *(empty(NUM_ROWS, vocab_size), longs(NUM_ROWS), longs(NUM_ROWS), ints(NUM_ROWS)),
                *(empty(NUM_ROWS), ints(NUM_ROWS), empty(NUM_ROWS), empty(NUM_ROWS)),
                *(empty(9, vocab_size, dtype=torch.int16), ints(9), ints(NUM_ROWS)),
                *(longs(NUM_ROWS), longs(2), empty(NUM_ROWS, dtype=torch.bool), ints(NUM_ROWS)),
            )
    assert [launch.arguments["vocab_size"] for launch in launches] == [5, 50, 128_256]
