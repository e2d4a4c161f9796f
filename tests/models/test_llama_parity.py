"""Llama against HF transformers in float32: logits at every position and greedy tokens."""

from __future__ import annotations

import pytest
import torch

from stagebeam.engine.errors import ImageError
from stagebeam.engine.models.loader import load_model

NUM_GREEDY = 200
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "TinyLlama: GQA 8, default rope": {"num_key_value_heads": 1},
    "SmolLM2: nine heads, three KV heads, tied": {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    },
    "Llama 3.2: llama3 rope, tied, GQA 4": {
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
    },
    "Llama 2: GQA 1, linear rope": {
        "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
    "dynamic rope within the context": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    },
    "odd sizes, a head_dim of its own": {
        "hidden_size": 57,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 26,
        "intermediate_size": 101,
        "vocab_size": 211,
    },
}


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_logits_and_greedy_tokens_equal_hf(name, random_llama, saved, ops, paged_run):
    hf = random_llama(seed=len(name), **CASES[name])
    model = load_model(saved(hf), device="cpu", dtype=torch.float32, backend_ops=ops)
    prompt = [1, *torch.randint(3, 199, (36,)).tolist()]
    out = hf.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NUM_GREEDY,
    )
    tokens = out[0].tolist()
    logits = hf(out).logits[0]

    whole = paged_run(model, [None], num_tokens=len(tokens)).prefill([tokens])[0]
    torch.testing.assert_close(whole, logits, atol=1e-4, rtol=0)
    run = paged_run(model, [None], num_tokens=len(tokens))
    parts = [run.prefill([prompt[:15]])[0], run.prefill([prompt[15:]])[0]]
    greedy, decoded = run.greedy(parts[1][-1:], NUM_GREEDY)
    assert greedy[0].tolist() == tokens[len(prompt) :]
    torch.testing.assert_close(torch.cat([*parts, decoded[0]]), logits[:-1], atol=1e-4, rtol=0)


def test_an_image_is_refused_in_words(random_llama, saved, ops):
    model = load_model(saved(random_llama()), device="cpu", dtype=torch.float32, backend_ops=ops)
    with pytest.raises(ImageError, match="text-only"):
        model.encode_image(torch.zeros(4, 3, 42, 42), 1, torch.ones(4))
