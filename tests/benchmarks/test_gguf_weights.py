"""GGUF files of other formats: the same metadata and vectors, matrices rounded to the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

from stagebeam.benchmarks.baselines import gguf_weights  # noqa: E402 (needs gguf)

MATRIX = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
# Of values below 4: a step of 11 or 8 bits of significand, or of a block's 127.
MOST_ERROR = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 4 / 127}


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "packaged.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_rope_freq_base(1e5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_tensor("norm", MATRIX[0])
    writer.add_tensor("matrix", MATRIX)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(gguf_weights, "gguf_path", lambda: path)
    return path


@pytest.mark.parametrize("name", gguf_weights.FILE_TYPES)
def test_a_file_of_another_format(packaged, tmp_path, name) -> None:
    made = tmp_path / "made.gguf"
    gguf_weights.write(made, name)
    reader, original = gguf.GGUFReader(made), gguf.GGUFReader(packaged)
    contents = {key: field.contents() for key, field in reader.fields.items()}
    expected = {key: field.contents() for key, field in original.fields.items()}
    assert contents.pop("general.file_type") == gguf_weights.FILE_TYPES[name]
    del expected["general.file_type"]
    assert contents == expected
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert np.array_equal(tensors["norm"].data, MATRIX[0])
    assert tensors["matrix"].tensor_type.name == name
    values = gguf.dequantize(tensors["matrix"].data, tensors["matrix"].tensor_type)
    error = np.abs(values - MATRIX).max()
    assert error <= MOST_ERROR[name]
    assert (error > 0) == (name != "F32")


def test_the_packaged_format_is_the_packaged_file(packaged) -> None:
    assert gguf_weights.gguf_of(gguf_weights.PACKAGED) == packaged
