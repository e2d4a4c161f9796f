"""What rounded weights cost: logits against the same rounding in PyTorch, perplexity on English prose,
and greedy tokens of real weights in float32."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stagebeam.engine.models.loader import load_model, load_native_model, read_spec
from stagebeam.engine.models.processor import load_processor

GROUP = 32
TEXT = Path(__file__).parent / "english.txt"
# Of float32's perplexity, at most; int4's is printed.
PERPLEXITY_BARS = {"float32": 1e-4, "bfloat16": 0.005, "int8": 0.015}
MAX_WINDOW = 512


def native(folder, ops, weight_format):
    model = load_native_model(folder, weight_format=weight_format, backend_ops=ops)
    model.lm_head = torch.empty(0)  # the caches of a paged run are float32
    return model


def rounded(weight: Tensor, weight_format: str) -> Tensor:
    """The weights that a format keeps."""
    if weight_format == "bfloat16":
        return weight.bfloat16().float()
    width = weight.shape[1]
    padded = torch.nn.functional.pad(weight, (0, -width % GROUP)).unflatten(1, (-1, GROUP))
    scale = (padded.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
    steps = torch.where(scale > 0, padded / scale, 0.0).round().clamp(-127, 127)
    return (steps * scale).flatten(1)[:, :width]


@pytest.mark.parametrize("weight_format", ["bfloat16", "int8"])
@torch.inference_mode()
def test_error_is_at_most_twice_that_of_the_rounding(
    weight_format, random_llama, saved, ops, paged_run
):
    for seed in range(3):
        hf = random_llama(seed=seed)
        tokens = torch.randint(3, 199, (1, 60), generator=torch.Generator().manual_seed(seed))
        truth = copy.deepcopy(hf).double()(tokens).logits[0]
        coarse = copy.deepcopy(hf)
        for name, parameter in coarse.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(rounded(parameter, weight_format))
                assert "norm" not in name
        allowed = (coarse(tokens).logits[0] - truth).abs()
        run = paged_run(native(saved(hf), ops, weight_format), [None], num_tokens=60)
        ids = tokens[0].tolist()
        ours = [run.prefill([ids[:30]])[0], *(run.decode([token]) for token in ids[30:])]
        error = (torch.cat(ours) - truth).abs()
        slack = 1e-6 * truth.abs().max()
        assert error.max() <= 2 * allowed.max() + slack
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + slack


def perplexity(logits: Tensor, token_ids: list[int]) -> float:
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(token_ids[1:]))
    return math.exp(float(loss))


@torch.inference_mode()
def test_perplexity_on_english_prose(smollm2_folder, ops, paged_run, capsys):
    processor = load_processor(smollm2_folder, read_spec(smollm2_folder))
    token_ids = processor.encode(TEXT.read_text(encoding="utf-8"))[:MAX_WINDOW]
    assert len(token_ids) >= 400
    hf = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    expected = perplexity(hf(torch.tensor([token_ids])).logits[0], token_ids)
    del hf
    found = {}
    for weight_format in (*PERPLEXITY_BARS, "int4"):
        model = native(smollm2_folder, ops, weight_format)
        run = paged_run(model, [None], num_tokens=len(token_ids))
        found[weight_format] = perplexity(run.prefill([token_ids])[0], token_ids) / expected - 1
    with capsys.disabled():
        print(
            f"\nperplexity {expected:.3f}; " + ", ".join(f"{k} {v:+.2%}" for k, v in found.items())
        )
    for weight_format, bar in PERPLEXITY_BARS.items():
        assert abs(found[weight_format]) <= bar, (weight_format, found)


@torch.inference_mode()
def test_float32_greedy_tokens_of_real_weights_are_the_references(smollm2_folder, ops, paged_run):
    processor = load_processor(smollm2_folder, read_spec(smollm2_folder))
    prompts = [
        processor.encode(processor.render([{"role": "user", "content": text}]))
        for text in ("Why is the sky blue?", "Name three rivers in Europe.")
    ]
    greedy = []
    for model in (
        load_model(smollm2_folder, device="cpu", dtype=torch.float32, backend_ops=ops),
        native(smollm2_folder, ops, "float32"),
    ):
        run = paged_run(model, [None] * len(prompts), num_tokens=80)
        first = torch.stack([logits[-1] for logits in run.prefill(prompts)])
        greedy.append(run.greedy(first, 40)[0].tolist())
    assert greedy[0] == greedy[1]
