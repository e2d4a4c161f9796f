"""The published sizes, 11B and 90B, on the meta device: names, shapes and the arithmetic of memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

from stagebeam.engine.errors import CheckpointError
from stagebeam.engine.models.forward import BranchAttention, CrossRows, ForwardBatch
from stagebeam.engine.models.loader import build_model, read_spec
from stagebeam.engine.models.spec import ModelSpec

HERE = Path(__file__).parent
BILLION = 10**9


def spec_and_tensors(size: str) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    config = MllamaConfig.from_dict(
        json.loads((HERE / f"llama-3.2-{size}-vision.json").read_text())
    )
    with torch.device("meta"):
        hf = MllamaForConditionalGeneration(config)
    return ModelSpec.from_hf(config, {}), hf.state_dict()


@pytest.fixture(scope="module", params=["11b", "90b"])
def real(request) -> tuple[str, ModelSpec, dict[str, torch.Tensor]]:
    return request.param, *spec_and_tensors(request.param)


def hub_name(name: str) -> str:
    """A name as the published files have it, without transformers 5's leading `model.`."""
    name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
    return f"language_model.{name}" if name.startswith("lm_head") else name


@pytest.mark.parametrize(
    "is_hub_layout", [True, False], ids=["hub layout", "transformers 5 layout"]
)
def test_every_tensor_is_taken_with_its_shape(real, is_hub_layout, ops):
    _, spec, tensors = real
    named = {hub_name(name): t for name, t in tensors.items()} if is_hub_layout else tensors
    assert len(named) == len(tensors)
    model = build_model(spec, named, device="meta", dtype=torch.bfloat16, backend_ops=ops)
    assert model.lm_head.shape == (128256, spec.hidden_size)
    assert model.embedding.shape == (128264, spec.hidden_size)
    assert spec.num_parameters == sum(t.numel() for t in tensors.values())


def test_a_renamed_or_reshaped_tensor_is_named(real, ops):
    _, spec, tensors = real
    name = "model.language_model.layers.3.cross_attn.k_norm.weight"
    renamed = {
        n.replace("3.cross_attn.k_norm", "3.cross_attn.key_norm"): t for n, t in tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"layers\.3\.cross_attn\.k_norm"):
        build_model(spec, renamed, device="meta", dtype=torch.bfloat16, backend_ops=ops)
    reshaped = {**tensors, name: torch.empty(64, device="meta")}
    with pytest.raises(CheckpointError, match=r"layers\.3\.cross_attn\.k_norm.*\[64\].*\[128\]"):
        build_model(spec, reshaped, device="meta", dtype=torch.bfloat16, backend_ops=ops)


def test_memory_arithmetic(real):
    size, spec, _ = real
    assert spec.vision_tokens == 6404
    if size == "11b":
        assert (spec.num_layers, spec.num_cross_layers) == (32, 8)
        assert spec.kv_bytes_per_token(2) == 128 * 1024
        assert spec.image_slot_bytes(2) == 209_846_272  # 210 MB an image
        assert 10.6 * BILLION < spec.num_parameters < 10.7 * BILLION
        assert 18.3 * BILLION < 2 * spec.num_decode_parameters < 18.5 * BILLION
    else:
        assert (spec.num_layers, spec.num_cross_layers) == (80, 20)
        assert 88 * BILLION < spec.num_parameters < 89 * BILLION
    assert spec.weight_bytes(2) == 2 * spec.num_parameters
    assert spec.eos_ids == (128001, 128008, 128009)
    assert spec.image_token_id == 128256


def test_a_decode_pass_of_the_11b_runs_on_meta(ops):
    """No step of it reads a value on the host."""
    spec, tensors = spec_and_tensors("11b")
    model = build_model(spec, tensors, device="meta", dtype=torch.bfloat16, backend_ops=ops)

    def int32(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device="meta")

    def caches(count: int, *shape: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        cache = torch.empty(*shape, 8, 128, dtype=torch.bfloat16, device="meta")
        return [(cache, cache)] * count

    batch = ForwardBatch(
        token_ids=int32(4).long(),
        positions=int32(4).long(),
        slot_mapping=int32(4),
        attention=BranchAttention(
            group_offsets=int32(2),
            row_group=int32(4),
            trunk_tables=int32(1, 60),
            trunk_lens=int32(1),
            tail_tables=int32(4, 3),
            tail_lens=int32(4),
            max_group_rows=4,
        ),
        cross=CrossRows(
            group_offsets=int32(2),
            group_slots=int32(1),
            max_group_rows=4,
            slots=int32(4),
            kv_lens=int32(4),
            has_mlp=int32(4).bool(),
        ),
    )
    hidden = model.forward(batch, caches(32, 100, 16), caches(8, 2, 6404))
    assert model.logits(hidden).shape == (4, 128256)


def test_a_folder_of_the_published_form_is_read(tmp_path):
    text = (HERE / "llama-3.2-11b-vision.json").read_text()
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 128009}')
    spec = read_spec(tmp_path)
    assert spec.eos_ids == (128009,)
    assert (spec.rope.kind, spec.rope.factor, spec.rope.theta) == ("llama3", 8.0, 500000.0)
    assert spec.rope.original_max_position_embeddings == 8192
    assert np.diff(spec.cross_attention_layers).tolist() == [5] * 7
