"""Loading HF folders: layouts, shards, conversion, and every fault a clear error with a name."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagebeam.engine.errors import CheckpointError
from stagebeam.engine.models.loader import load_model, read_spec

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def llama_folder(random_llama, saved) -> Path:
    return saved(random_llama())


@pytest.fixture(scope="module")
def mllama_folder(random_mllama, saved) -> Path:
    return saved(random_mllama())


@pytest.fixture
def folder(llama_folder, tmp_path) -> Path:
    """A copy of a good Llama folder to damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


@pytest.fixture
def load(ops):
    return lambda path, dtype=torch.float32: load_model(
        path, device="cpu", dtype=dtype, backend_ops=ops
    )


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def shard(folder: Path) -> None:
    """The folder's single file as two shards behind an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    weight_map = {name: file for file, own in shards.items() for name in own}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_projections_are_fused_in_order(llama_folder, load):
    tensors = load_file(llama_folder / "model.safetensors")
    layer = load(llama_folder).layers[1]
    parts = [tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(layer.attention.qkv, torch.cat(parts))
    parts = [tensors[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up, torch.cat(parts))


def test_shards_give_the_same_weights(folder, llama_folder, load):
    shard(folder)
    one, two = load(llama_folder), load(folder)
    assert torch.equal(one.lm_head, two.lm_head)
    assert torch.equal(one.layers[2].attention.qkv, two.layers[2].attention.qkv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_converted(mllama_folder, load, dtype):
    model = load(mllama_folder, dtype)
    tensors = load_file(mllama_folder / "model.safetensors")
    assert model.lm_head.dtype == dtype
    assert torch.equal(model.lm_head, tensors["language_model.lm_head.weight"].to(dtype))
    assert model.vision.patches.dtype == dtype


def test_both_layouts_and_none_give_the_same_model(llama_folder, folder, load):
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {name.removeprefix("model."): tensors.pop(name) for name in list(tensors)}
        ),
    )
    assert torch.equal(load(folder).layers[0].mlp.down, load(llama_folder).layers[0].mlp.down)


def test_a_tied_head_is_the_embedding_itself(random_llama, saved, load):
    model = load(saved(random_llama(tie_word_embeddings=True)))
    assert model.lm_head.data_ptr() == model.embedding.data_ptr()
    assert model.spec.has_tied_head


def test_a_tied_mllama_without_a_head_uses_the_embedding(random_mllama, saved, load):
    folder = saved(random_mllama(tie_word_embeddings=True))
    rewrite(folder, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    model = load(folder)
    assert model.lm_head.shape == (199, 64)
    assert model.lm_head.data_ptr() == model.embedding.data_ptr()


def test_old_rotary_buffers_are_ignored(folder, load):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    load(folder)


def test_weight_bytes_are_those_of_the_tensors(llama_folder, mllama_folder):
    for path in (llama_folder, mllama_folder):
        tensors = load_file(path / "model.safetensors").values()
        assert read_spec(path).weight_bytes(4) == sum(t.nbytes for t in tensors)


def test_a_missing_tensor(folder, load):
    rewrite(folder, lambda tensors: tensors.pop(UP))
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight.*missing.*\[96, 64\]"
    ):
        load(folder)


def test_a_missing_head_without_tying(folder, load):
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*missing"):
        load(folder)


def test_an_extra_tensor(folder, load):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.9.adapter": torch.ones(2)}))
    with pytest.raises(
        CheckpointError, match=r"1 tensors.*not in the model.*model\.layers\.9\.adapter"
    ):
        load(folder)


def test_a_misshapen_tensor(folder, load):
    rewrite(folder, lambda tensors: tensors.update({UP: torch.ones(96, 63)}))
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight' has shape \[96, 63\], expected \[96, 64\]"
    ):
        load(folder)


def test_an_integer_tensor(folder, load):
    rewrite(folder, lambda tensors: tensors.update({UP: torch.ones(96, 64, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' is torch\.int8.*quantized"):
        load(folder)


def test_one_tensor_in_both_layouts(folder, load):
    rewrite(folder, lambda tensors: tensors.update({UP.removeprefix("model."): torch.ones(96, 64)}))
    with pytest.raises(CheckpointError, match=r"two layouts"):
        load(folder)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.1])
def test_a_truncated_file_names_the_first_cut_tensor(folder, load, share):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    kept = 8 + header_size + int(share * (len(data) - 8 - header_size))
    path.write_bytes(data[:kept])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: .*truncated: tensor '[\w.]+' ends"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated or not a safetensors file"),
        (b"abc", "truncated or not a safetensors file"),
        (b"\xff" * 64, "truncated or not a safetensors file"),
        ((40).to_bytes(8, "little") + b"{" * 40 + b"\0" * 99, "header is corrupt"),
        ((16).to_bytes(8, "little") + b'{"a": [1, 2, 3]}' + b"\0" * 99, "header is corrupt"),
        (b"PK\x03\x04" + b"\0" * 4 + b"a pickle", "not a safetensors file"),
    ],
)
def test_a_corrupt_header(folder, load, content, words):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{words}"):
        load(folder)


def test_a_header_with_any_byte_changed_is_a_clear_error_or_loads(folder, load):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, int.from_bytes(data[:8], "little"), (60,), generator=generator):
        damaged = bytearray(data)
        damaged[int(place)] ^= 0x15
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            load(folder)


def test_a_missing_shard_names_it_and_a_tensor(folder, load):
    shard(folder)
    (folder / "two.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"shard 'two\.safetensors' with tensor '.+' is missing"
    ):
        load(folder)


def test_an_index_that_names_an_absent_tensor(folder, load):
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.7.gone"] = "one.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'model\.layers\.7\.gone' in 'one\.safetensors'"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}']
)
def test_a_damaged_index(folder, load, text):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(folder)


def test_no_weights(folder, load):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen2_vl"}, "'qwen2_vl' is not supported, expected 'mllama'.*'llama'"),
        ({"model_type": None}, "None is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
        ({"attention_bias": True}, "attention_bias must be false"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type must",
        ),
        ({"hidden_size": 65}, "config.json"),
        ({"num_hidden_layers": "three"}, "config.json"),
    ],
)
def test_an_unsupported_config(folder, load, change, words):
    set_config(folder, **change)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_a_config_that_does_not_fit_the_weights_names_a_tensor(folder, load):
    set_config(folder, intermediate_size=97)
    with pytest.raises(
        CheckpointError, match=r"gate_proj\.weight' has shape \[96, 64\], expected \[97"
    ):
        load(folder)


def test_no_folder_and_no_config(folder, load, tmp_path):
    with pytest.raises(CheckpointError, match=r"does not exist"):
        load(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(folder)


def test_a_vision_tower_of_another_form(mllama_folder, tmp_path, load):
    folder = Path(shutil.copytree(mllama_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    vision = {**config["vision_config"], "vision_output_dim": 71}
    set_config(folder, vision_config=vision)
    with pytest.raises(CheckpointError, match=r"vision_output_dim must be .* 72, got 71"):
        load(folder)
    ratios = [[1, 1], [2, 1], [1, 2]]
    set_config(folder, vision_config={**config["vision_config"], "supported_aspect_ratios": ratios})
    with pytest.raises(CheckpointError, match=r"supported_aspect_ratios must be"):
        load(folder)
