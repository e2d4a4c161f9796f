"""SmolLM2-135M as GGUF files of other weight formats, for engines that read those.

The packaged file's 4-bit weights, unpacked to float32 (as our own folder holds them) and written again
with llama.cpp's own rounding, which its `gguf` package carries.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf

from stagebeam.benchmarks.midsize import cache_folder
from stagebeam.benchmarks.smollm2 import gguf_path

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
PACKAGED = "Q4_1"


def gguf_of(name: str) -> Path:
    """A file whose matrices are in the format, made on first use; vectors stay float32."""
    if name == PACKAGED:
        return gguf_path()
    path = cache_folder() / f"smollm2-135m-{name}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}.part")
        write(made, name)
        made.replace(path)
    return path


def write(path: Path, name: str) -> None:
    """The packaged file's metadata and tensors, its matrices in the format."""
    reader = gguf.GGUFReader(gguf_path())
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=element)
    writer.add_file_type(FILE_TYPES[name])
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        is_vector = values.ndim == 1
        kind = gguf.GGMLQuantizationType["F32" if is_vector else name]
        writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
