"""Half-precision logits of the bundled model against HF's, both against HF in float64 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.gpu_check.checks import Outcome
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.engine import Engine
from stagebeam.engine.step.batch import PrefillChunk

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NUM_TOKENS = 96


def half_precision_parity(device: str) -> Outcome:
    """Each dtype's largest logit error is at most twice HF's own, plus 1e-6 of the scale."""
    tokens = prompt_tokens()
    exact = hf_logits(tokens, "cpu", torch.float64)
    is_ok = True
    details: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        ours = (our_logits(tokens, device, name) - exact).abs().max().item()
        own = (hf_logits(tokens, device, dtype) - exact).abs().max().item()
        allowed = 2 * own + 1e-6 * exact.abs().max().item()
        details[name] = {"our_error": ours, "hf_error": own, "ratio": ours / own}
        is_ok = is_ok and ours <= allowed
    return is_ok, details


def prompt_tokens() -> list[int]:
    """Drawn ids of the bundled vocabulary's ordinary tokens."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(300, 1000, (NUM_TOKENS,), generator=generator).tolist()


@torch.inference_mode()
def hf_logits(tokens: list[int], device: str, dtype: torch.dtype) -> Tensor:
    """[num_tokens, vocab_size] float64 on the host."""
    model: Any = HFModel(BUNDLED_CHECKPOINT, dtype).model.to(device)
    logits: Tensor = model(input_ids=torch.tensor([tokens], device=device)).logits[0]
    return logits.double().cpu()


@torch.inference_mode()
def our_logits(tokens: list[int], device: str, dtype: str) -> Tensor:
    """The same, half of them by one prefill pass and the others behind that cache, one at a time."""
    with Engine(device=device, dtype=dtype, kv_cache_bytes=64 << 20) as engine:
        runner, cache = engine._loop._runner, engine.kv_cache
        rows = []
        for length in range(1, len(tokens) + 1):
            # Every length anew up to the half, so that prefill's rows are compared too.
            if length <= len(tokens) // 2 or length == len(tokens) // 2 + 1:
                created = cache.pool.create(len(tokens))
                assert created is not None, "64 MiB hold one sequence"
                seq, start = created, 0
            chunk = PrefillChunk(
                seq=seq,
                token_ids=tokens[start:length],
                start=start,
                slots=cache.append(seq, length - start),
                image=None,
                wants_hidden=True,
            )
            rows.append(runner.model.logits(runner.prefill([chunk])).double().cpu())
            if length <= len(tokens) // 2:
                cache.pool.release([seq])
            start = length
        cache.pool.release([seq])
    return torch.cat(rows)
