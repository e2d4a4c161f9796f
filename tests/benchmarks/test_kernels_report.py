"""The report's arithmetic: sizes, traffic and the written table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import MllamaConfig

pytest.importorskip("triton", reason="triton is not installed (pip install 'stagebeam[triton]')")

from stagebeam.benchmarks.kernels_report import table
from stagebeam.benchmarks.kernels_report.binary import mma_kind, widest_load_bits
from stagebeam.benchmarks.kernels_report.compiling import Compiled
from stagebeam.benchmarks.kernels_report.passes import TAIL_TOKENS, TRUNK_TOKENS
from stagebeam.benchmarks.kernels_report.roofline import DENSE, step_roofs
from stagebeam.benchmarks.kernels_report.sizes import spec_of
from stagebeam.benchmarks.speed.floor import step_bytes
from stagebeam.engine.models.spec import ModelSpec

MODELS = Path(__file__).parents[1] / "models"


@pytest.mark.parametrize("size", ["11B", "90B"])
def test_the_sizes_are_the_published_ones(size: str) -> None:
    text = (MODELS / f"llama-3.2-{size.lower()}-vision.json").read_text()
    published = ModelSpec.from_hf(MllamaConfig.from_dict(json.loads(text)), {})
    ours = spec_of(size)
    # No kernel depends on the angles, none on the ids that end a text.
    assert replace(ours, rope=published.rope, eos_ids=published.eos_ids) == published


@pytest.mark.parametrize("num_rows", [1, 4, 32])
def test_a_step_moves_what_the_floor_says_it_must(num_rows: int) -> None:
    """The least of weights and caches is the floor of the speed reports; the rest is activations."""
    spec = spec_of("11B")
    roofs = {roof.op: roof for roof in step_roofs(num_rows)}
    floor = step_bytes(
        spec,
        weight_bytes=2,
        kv_bytes=2,
        trunk_tokens=TRUNK_TOKENS,
        tail_tokens=num_rows * TAIL_TOKENS,
        vision_tokens=spec.vision_tokens,
    )
    read = sum(roofs[op].least_bytes for op in (DENSE, "branch_attention", "cross_attention"))
    assert floor < read < 1.002 * floor
    for roof in roofs.values():
        assert roof.moved_bytes >= roof.least_bytes
        assert roof.least_us["b200"] < roof.least_us["h100"] < roof.least_us["a100"]


def test_a_trunk_is_read_once_for_four_branches() -> None:
    one, four = ({r.op: r for r in step_roofs(n)}["branch_attention"] for n in (1, 4))
    assert four.moved_bytes < 2 * one.moved_bytes


def test_instructions_are_read_from_ptx() -> None:
    assert widest_load_bits("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];") == 128
    assert widest_load_bits("ld.global.L1::evict_last.b16 {%rs1}, [%rd1];") == 16
    assert widest_load_bits("ld.global.nc.v2.u32 {%r1, %r2}, [%rd1];") == 64
    assert (
        widest_load_bits("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;") == 128
    )
    assert (
        widest_load_bits("ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];\nld.param.b64 %rd1, [p];")
        == 0
    )
    assert mma_kind("mma.sync.aligned.m16n8k16") == "mma.sync"
    assert mma_kind("wgmma.mma_async.sync.aligned") == "wgmma"
    assert mma_kind("ld.global.b32") == "none"


def test_the_table_says_that_nothing_ran() -> None:
    kernel = Compiled(
        key="some_kernel bf16",
        kernel="some_kernel",
        dtype="bf16",
        target="sm_80",
        num_warps=4,
        registers=32,
        stack_bytes=0,
        shared_bytes=2048,
        tensor_columns=0,
        mma="none",
        load_bits=128,
        occupancy=1.0,
    )
    kernels = [kernel, replace(kernel, target="sm_90", registers=40)]
    roofs = {1: step_roofs(1)}
    page = table.markdown(kernels, roofs, ["Left out: no nvcc."])
    assert "nothing here was run on one" in page
    assert "| some_kernel bf16 | 32 / 40 | 2.0 | 100% | none | 128 |" in page
    assert "Left out: no nvcc." in page
    document = table.document(kernels, roofs, [], {"torch": torch.__version__})
    assert document["ran_on_a_gpu"] is False
    assert json.loads(json.dumps(document))["kernels"][1]["registers"] == 40
