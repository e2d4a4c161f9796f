"""The captured step and a judge round, and HF `generate` on the same device beside them.

The bundled model is small, so these say what the host and the launches cost, not what bandwidth does.
"""

from __future__ import annotations

from typing import Any

import torch

from stagebeam.benchmarks.baselines.hf_model import HFModel, Stamps
from stagebeam.benchmarks.gpu_check.checks import Outcome
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams, SearchParams

BEAM_SIZES = (1, 4, 8)
QUESTION = "How many circles are there?"


def step_times(device: str, dtype: str = "bfloat16", num_tokens: int = 128) -> Outcome:
    """Milliseconds a decode step (ours, HF's) and of judging; measured, nothing to pass."""
    details: dict[str, Any] = {"dtype": dtype}
    with Engine(device=device, dtype=dtype, kv_cache_bytes=256 << 20) as engine:
        for beam_size in BEAM_SIZES:
            sampling = SamplingParams(
                temperature=1.0, max_tokens=num_tokens, seed=1, ignore_eos=True
            )
            search = SearchParams(strategy="best_of_n", beam_size=beam_size)
            engine.answer(QUESTION, search=search, sampling=sampling)  # captures and compiles
            answer = engine.answer(QUESTION, search=search, sampling=sampling)
            steps = max(1, answer.usage.decode_steps)
            details[f"beam_{beam_size}"] = {
                "decode_ms_a_step": 1000 * answer.timings.decode / steps,
                "judge_ms": 1000 * answer.timings.judge,
                "judge_calls": answer.usage.judge_calls,
                "hf_generate_ms_a_step": 1000
                * hf_step_seconds(device, dtype, beam_size, num_tokens),
            }
    return True, details


@torch.inference_mode()
def hf_step_seconds(device: str, dtype: str, num_rows: int, num_tokens: int) -> float:
    """The mean step of HF `generate` with `num_return_sequences`, behind a short prompt."""
    hf = HFModel(BUNDLED_CHECKPOINT, getattr(torch, dtype))
    hf.model.to(device)
    ids = torch.tensor([[hf.spec.bos_id or 0, *range(300, 332)]], device=device)
    sampling = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True)
    stamps = Stamps()
    for _ in range(2):  # the first one warms up
        stamps = Stamps()
        hf.model.generate(
            input_ids=ids,
            generation_config=hf.generation_config(sampling, num_tokens),
            num_return_sequences=num_rows,
            stopping_criteria=[stamps],
        )
    return (stamps.times[-1] - stamps.times[0]) / max(1, len(stamps.steps))
