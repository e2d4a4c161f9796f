"""The native program against Hugging Face: logits and greedy tokens, and rows that see only themselves."""

from __future__ import annotations

import pytest
import torch

from stagebeam.engine.models.loader import build_native_model, read_spec
from stagebeam.engine.models.safetensors_files import SafetensorsFiles

NUM_GREEDY = 8
CASES = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "odd sizes": {
        "hidden_size": 57,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 26,
        "intermediate_size": 101,
        "vocab_size": 211,
    },
}


def native(folder, ops, weight_format="float32", num_threads=2):
    model = build_native_model(
        read_spec(folder),
        SafetensorsFiles(folder),
        weight_format=weight_format,
        backend_ops=ops,
        num_threads=num_threads,
    )
    model.lm_head = torch.empty(0)
    return model


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_logits_and_greedy_tokens_equal_hf(name, random_llama, saved, ops, paged_run):
    hf = random_llama(seed=len(name), **CASES[name])
    model = native(saved(hf), ops)
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


@pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "int8", "int4"])
@torch.inference_mode()
def test_a_row_is_the_same_alone_and_among_32(weight_format, random_llama, saved, ops, paged_run):
    model = native(saved(random_llama(seed=3)), ops, weight_format)
    prompts = [torch.randint(3, 199, (5 + 7 * i % 90,)).tolist() for i in range(32)]
    together = paged_run(model, [None] * 32, num_tokens=128)
    first = torch.stack([x[-1] for x in together.prefill(prompts)])
    tokens, logits = together.greedy(first, NUM_GREEDY)
    for i in (0, 7, 31):
        alone = paged_run(model, [None], num_tokens=128)
        own = alone.prefill([prompts[i]])[0][-1:]
        assert torch.equal(own[0], first[i])
        own_tokens, own_logits = alone.greedy(own, NUM_GREEDY)
        assert torch.equal(own_tokens[0], tokens[i])
        assert torch.equal(own_logits[0], logits[i])


@pytest.mark.parametrize("cross_attention_layers", [[1, 3], [1, 4]])
@torch.inference_mode()
def test_rows_that_nobody_reads_may_stop_early(
    cross_attention_layers, random_mllama, saved, ops, paged_run, image
):
    """A prefill with few outputs, or none, leaves what one with all of them leaves, bit for bit."""
    model = native(saved(random_mllama(seed=5, cross_attention_layers=cross_attention_layers)), ops)
    seen = [(image(42, 1, 1), 3), None, (image(42, 1, 1, seed=1), 0)]
    prompts = [torch.randint(3, 199, (n,)).tolist() for n in (37, 18, 50)]
    more = [torch.randint(3, 199, (n,)).tolist() for n in (3, 20, 1)]
    whole, few = (paged_run(model, seen, num_tokens=80) for _ in range(2))
    whole.prefill(prompts)
    assert all(len(logits) == 0 for logits in few.prefill(prompts, [False] * 3))
    wanted = few.prefill(more, [True, False, True])
    everything = whole.prefill(more)
    for i in (0, 2):
        assert torch.equal(wanted[i][0], everything[i][-1])
    tokens = [5, 6, 7]
    assert torch.equal(few.decode(tokens), whole.decode(tokens))
