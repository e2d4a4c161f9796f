"""The adapter to flash-attn: when it is chosen, and how it calls the package.

flash-attn itself does not run here. A stand-in with its documented meaning, written in plain PyTorch,
takes its place: what is tested is the packing of blocks and the calling convention, not its kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from prefill_rows import CASES, build
from torch import Tensor

from stagebeam.kernels import registry

OP = "prefill_attention"
MODULE = "stagebeam.kernels.prefill_attention.flash_attn"
HALF = [torch.float16, torch.bfloat16]
HEADS = [(1, 1, 8), (4, 4, 8), (6, 2, 16), (8, 1, 64)]


def varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
) -> Tensor:
    """As flash-attn documents it from 2.1 on: the mask's lower right corner is the last row's last key."""
    assert causal
    assert q.dtype in HALF
    assert q.dtype == k.dtype == v.dtype
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    out = torch.full_like(q, torch.nan)
    queries, keys = (x.diff().tolist() for x in (cu_seqlens_q, cu_seqlens_k))
    assert (max_seqlen_q, max_seqlen_k) == (max(queries), max(keys))
    for s, (num_rows, num_keys) in enumerate(zip(queries, keys)):
        rows, key, value = (
            x[start[s] : start[s + 1]].float().transpose(0, 1)
            for x, start in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))
        )
        key, value = (x.repeat_interleave(len(rows) // len(x), 0) for x in (key, value))
        is_seen = torch.ones(num_rows, num_keys, dtype=torch.bool).tril(num_keys - num_rows)
        scores = (rows @ key.mT * softmax_scale).masked_fill(~is_seen, -torch.inf)
        attended = scores.softmax(-1) @ value
        out[cu_seqlens_q[s] : cu_seqlens_q[s + 1]] = attended.transpose(0, 1).to(q.dtype)
    return out


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The twin's module, over the stand-in."""
    pytest.importorskip("triton", reason="the twin needs triton (pip install 'stagebeam[triton]')")
    stand_in = ModuleType("flash_attn")
    vars(stand_in).update(__version__="2.8.3", flash_attn_varlen_func=varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_the_stand_in_is_called_rightly(adapter, check, paged, lengths, heads, dtype) -> None:
    arguments, naive = build(paged, lengths, heads, 16, dtype)
    assert check(adapter.prefill_attention, naive, *arguments).dtype == dtype


@pytest.mark.parametrize("prefix", [0, 1, 15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_prefixes_around_a_blocks_end(adapter, check, paged, prefix, block_size) -> None:
    lengths = [(5, prefix + 5), (1, 3), (17, prefix + 17)]
    arguments, naive = build(paged, lengths, (8, 2, 8), block_size, torch.float16)
    check(adapter.prefill_attention, naive, *arguments)


def test_views_and_empty_batches(adapter, paged) -> None:
    arguments, _ = build(paged, [(9, 9)], (4, 2, 8), 4, torch.bfloat16)
    q = torch.randn(9, 64).bfloat16()[:, :32].view(9, 4, 8)
    whole = adapter.prefill_attention(q.contiguous(), *arguments[1:])
    assert torch.equal(adapter.prefill_attention(q, *arguments[1:]), whole)
    cache, none = arguments[1], torch.zeros(0, dtype=torch.int32)
    tables, offsets = torch.zeros(0, 0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    empty = (q[:0], cache, cache, offsets, none, tables, 0, 0, 1.0)
    assert adapter.prefill_attention(*empty).shape == (0, 4, 8)


def test_no_value_is_looked_at(adapter, monkeypatch) -> None:
    """On meta tensors a value does not exist."""
    monkeypatch.setattr(
        adapter, "flash_attn_varlen_func", lambda q, *rest, **named: torch.empty_like(q)
    )
    cache = torch.empty(9, 16, 2, 8, dtype=torch.float16, device="meta")
    q = torch.empty(40, 4, 8, dtype=torch.float16, device="meta")
    shapes = ((4,), (3,), (3, 5))
    offsets, lens, tables = (torch.empty(x, dtype=torch.int32, device="meta") for x in shapes)
    out = adapter.prefill_attention(q, cache, cache, offsets, lens, tables, 20, 70, 0.3)
    assert out.shape == q.shape


@pytest.mark.parametrize(
    ("dtype", "head_dim", "is_served"),
    [
        *((dtype, dim, True) for dtype in HALF for dim in (8, 128, 256)),
        *((torch.float16, dim, False) for dim in (7, 12, 264)),
        (torch.float32, 128, False),
    ],
)
def test_the_other_calls_go_to_the_twin_that_the_contract_names(
    adapter, paged, monkeypatch, dtype, head_dim, is_served
) -> None:
    arguments, _ = build(paged, [(2, 5)], (2, 1, head_dim), 4, dtype)
    handed_over: list[Any] = []
    monkeypatch.setattr(
        adapter.triton_kernel, OP, lambda *given: handed_over.append(given) or given[0]
    )
    adapter.prefill_attention(*arguments)
    assert len(handed_over) == (not is_served)
    for given in handed_over:
        assert all(mine is theirs for mine, theirs in zip(given, arguments, strict=True))


@pytest.mark.parametrize(
    ("version", "capability", "reason"),
    [
        ("2.0.9", (9, 0), r"needs flash-attn 2\.1 or newer \(.*\), got 2\.0\.9"),
        ("2.8.3", None, "torch sees no CUDA device"),
        ("2.8.3", (7, 5), "needs a GPU of sm_80 or newer, got sm_75"),
        ("2.1", (8, 0), None),
        ("2.8.3.post1", (10, 0), None),
    ],
)
def test_the_reason_in_words(adapter, monkeypatch, version, capability, reason) -> None:
    monkeypatch.setattr(adapter, "__version__", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    got = adapter.why_unavailable()
    assert (got is None) == (reason is None)
    assert re.fullmatch(reason or "None", str(got))


def test_a_package_of_that_name_without_the_function_is_no_backend(adapter, monkeypatch) -> None:
    """A newer generation of flash-attn puts other modules below the same name."""
    monkeypatch.delattr(sys.modules["flash_attn"], "flash_attn_varlen_func")
    sys.modules.pop(MODULE)
    registry._module.cache_clear()
    reason = registry.why_unavailable(OP, "flash_attn")
    assert reason is not None
    assert reason.startswith("its import fails: cannot import name 'flash_attn_varlen_func'")


def test_a_missing_package_is_the_reason() -> None:
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed here")
    reason = registry.why_unavailable(OP, "flash_attn")
    assert reason == "its import fails: No module named 'flash_attn'"
