"""One rank of a tensor-parallel engine, for test_tensor_parallel: answers on rank 0, sizes on every."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from PIL import Image

from stagebeam import Engine, JudgeParams, SamplingParams, SearchParams


def weight_bytes(value: object, seen: dict[int, int]) -> int:
    """Bytes of the tensors that a model holds, each storage once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        new = storage.data_ptr() not in seen
        seen[storage.data_ptr()] = storage.nbytes()
        return storage.nbytes() if new else 0
    if isinstance(value, (list, tuple)):
        return sum(weight_bytes(item, seen) for item in value)
    if type(value).__module__.startswith("stagebeam.engine.models"):
        parts = getattr(value, "__dict__", {})
        return sum(weight_bytes(item, seen) for name, item in parts.items() if name != "cos_sin")
    return 0


def answers(engine: Engine, image: Image.Image) -> list[object]:
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=24, seed=3)
    told = []
    for question, picture, mode in (("ab?", image, "logits"), ("cd", None, "generate")):
        if picture is not None and engine.spec.vision is None:
            picture = None
        answer = engine.answer(
            question,
            picture,
            search=SearchParams(strategy="stage_beam", beam_size=3),
            sampling=sampling,
            judge=JudgeParams(mode=mode),
        )
        for stage in answer.stages:
            told.append([list(c.token_ids) for c in stage.candidates])
            told.append([match.winner for match in stage.matches])
    return told


def main(folder: str, image_path: str, output: str, is_parallel: bool) -> None:
    torch.set_num_threads(1)
    with (
        Image.open(image_path) as image,
        Engine(
            folder,
            kv_cache_bytes=1 << 21,
            device="cpu",
            backend="reference",
            dtype="float32",
            tensor_parallel=is_parallel,
        ) as engine,
    ):
        model = engine._loop._runner.model
        model = getattr(model, "_model", model)
        result = {"bytes": weight_bytes(model, {})}
        if not engine.follow():
            result["answers"] = answers(engine, image.convert("RGB"))
        rank = os.environ.get("RANK", "0")
        Path(output).joinpath(f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:4], is_parallel="RANK" in os.environ)
    # On a busy machine a rank of gloo's was once seen to abort while the interpreter ends, all done.
    os._exit(0)
