"""What the Triton kernels have beside their ops: the unshared branch attention, half-precision
logits, refused strides."""

from __future__ import annotations

import pytest
import torch
from sample_rows import mixed_rows

triton_launch = pytest.importorskip("stagebeam.kernels.triton_launch", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    triton_launch.why_unavailable() is not None, reason="runs in test_in_the_interpreter.py"
)


def test_every_row_reading_its_trunk_for_itself_changes_nothing(paged) -> None:
    from stagebeam.kernels.branch_attention import triton_kernel

    lengths = [8, 300, 3, 9, 1, 270]  # two trunks, then four tails
    keys, values = ([torch.randn(n, 2, 8) for n in lengths] for _ in range(2))
    cache = paged(keys, values, 4)
    arguments = (
        *(torch.randn(4, 8, 8), cache.k_cache, cache.v_cache),
        torch.tensor([0, 1, 4], dtype=torch.int32),
        torch.tensor([0, 1, 1, 1], dtype=torch.int32),
        cache.table(seqs=[0, 1], pad=1),
        torch.tensor(lengths[:2], dtype=torch.int32),
        cache.table(seqs=[2, 3, 4, 5], pad=1),
        torch.tensor(lengths[2:], dtype=torch.int32),
        *(3, 0.3),
    )
    shared = triton_kernel.branch_attention(*arguments)
    alone = triton_kernel.branch_attention_unshared(*arguments)
    torch.testing.assert_close(alone, shared, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_as_if_widened_first(dtype) -> None:
    from stagebeam.kernels.sample_step.triton_kernel import sample_step

    arguments = mixed_rows(24, 300)
    logits = arguments.pop("logits").to(dtype)
    got = sample_step(logits, **arguments)
    wanted = sample_step(logits.float(), **arguments)
    assert got[1].dtype == torch.float32
    for half, full in zip(got, wanted, strict=True):
        assert torch.equal(half, full)


def test_strided_columns_are_refused() -> None:
    from stagebeam.kernels.rms_norm.triton_kernel import rms_norm

    with pytest.raises(AssertionError, match="columns must be contiguous"):
        rms_norm(torch.randn(8, 4).T, torch.randn(8), 1e-5)
