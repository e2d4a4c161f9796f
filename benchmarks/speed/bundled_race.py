"""The bundled checkpoint at a batch of rows that see an image: our decode steps beside HF `generate`.

Both decode greedily after prompts of random tokens of one length, every row with the image; a rate
counts the tokens after the first of each row. HF's includes its own loop, ours the engine's runner,
which takes as many steps at once as the engine's loop lets it.
"""

from __future__ import annotations

import time

import torch

from stagebeam.benchmarks.baselines.hf_model import HFModel, Stamps
from stagebeam.benchmarks.speed.bare import BareDecode
from stagebeam.benchmarks.speed.bench_command import EXAMPLES
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams


def hf_rate(model: HFModel, batch: int, prompt: int, tokens: int) -> float:
    """Tokens a second of HF `generate` in float32."""
    image = model.processor.preprocess(EXAMPLES / "scene.png")
    inputs = {
        name: value.repeat(batch, *[1] * (value.dim() - 1))
        for name, value in model.image_inputs(image).items()
    }
    ids = torch.randint(3, model.spec.vocab_size, (batch, prompt))
    stamps = Stamps()
    with torch.inference_mode():
        model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            cross_attention_mask=model.cross_mask(image, [0] * batch, prompt),
            **inputs,
            generation_config=model.generation_config(
                SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True), tokens
            ),
            stopping_criteria=[stamps],
        )
    return batch * (len(stamps.times) - 1) / (stamps.times[-1] - stamps.times[0])


def our_rate(engine: Engine, batch: int, prompt: int, tokens: int) -> float:
    """Tokens a second of our decode steps, distinct prompts as HF's: no row shares a trunk."""
    decode = BareDecode(
        engine,
        rows=1,
        num_groups=batch,
        trunk_tokens=prompt,
        max_steps=tokens,
        temperature=0.0,
    )
    try:
        num_steps = decode.step()
        began = time.perf_counter()
        while num_steps < tokens:
            num_steps += decode.step(may_run_ahead=True)
        return batch * (num_steps - 1) / (time.perf_counter() - began)
    finally:
        decode.close()


def open_engine(dtype: str, threads: int) -> Engine:
    return Engine(BUNDLED_CHECKPOINT, dtype=dtype, num_threads=threads, kv_cache_bytes=64 << 20)
