"""Mllama against HF transformers in float32: logits at every position and greedy tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from stagebeam.engine.models.loader import load_model

TOLERANCE = 1e-4
NUM_GREEDY = 200
IMAGE_TOKEN = 199


@dataclass
class Case:
    """A prompt of `num_before` tokens, the image token, and `num_after` tokens.

    aspect_ratio_id, num_tiles: the image's layout; 0 tiles is a prompt without an image
    second_turn: tokens that follow the first greedy answer, in a prompt of two turns
    """

    name: str
    num_tiles: int = 1
    aspect_ratio_id: int = 1
    num_before: int = 1
    num_after: int = 20
    num_bos: int = 1
    second_turn: int = 0
    is_hub_layout: bool = True
    text: dict[str, Any] = field(default_factory=dict)


ODD_SIZES = {
    "hidden_size": 90,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 131,
    "num_hidden_layers": 6,
    "cross_attention_layers": [0, 3, 5],
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = [
    Case("one tile, image first"),
    Case("two tiles side by side, image before begin-of-text", 2, 2, num_before=0, num_bos=0),
    Case("two tiles in a column, llama3 rope", 2, 5, 17, text={"rope_parameters": LLAMA3_ROPE}),
    Case("three tiles, image in the middle, GQA 4", 3, 3, 30, text={"num_key_value_heads": 2}),
    Case("three tiles in a column, GQA 1", 3, 7, text={"num_key_value_heads": 8}),
    Case("four tiles in a square, the other key layout", 4, 6, 5, is_hub_layout=False),
    Case("four tiles in a row, begin-of-text twice", 4, 4, num_bos=2),
    Case("four tiles in a column, begin-of-text twice, image late", 4, 8, 40, 3, num_bos=2),
    Case("no image", 0),
    Case("two turns", 2, 2, second_turn=25),
    Case("GQA 8, tied head", text={"num_key_value_heads": 1, "tie_word_embeddings": True}),
    Case("odd sizes", 2, 2, num_before=11, text=ODD_SIZES),
]


def prompt_of(case: Case) -> list[int]:
    generator = torch.Generator().manual_seed(len(case.name))
    ids = torch.randint(3, IMAGE_TOKEN, (case.num_before + case.num_after,), generator=generator)
    before, after = ids[: case.num_before].tolist(), ids[case.num_before :].tolist()
    return [1] * case.num_bos + before + ([IMAGE_TOKEN] if case.num_tiles else []) + after


def hf_greedy(
    model: Any, prompt: list[int], inputs: dict[str, Tensor], num_tokens: int
) -> list[int]:
    model.generation_config.eos_token_id = None
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=num_tokens,
        **inputs,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_logits_and_greedy_tokens_equal_hf(case, random_mllama, saved, ops, paged_run, image):
    hf = random_mllama(seed=len(case.name), **case.text)
    model = load_model(
        saved(hf, case.is_hub_layout), device="cpu", dtype=torch.float32, backend_ops=ops
    )
    prompt = prompt_of(case)
    picture = image(42, case.aspect_ratio_id, case.num_tiles) if case.num_tiles else None
    place = prompt.index(IMAGE_TOKEN) if picture else 0

    def inputs(length: int) -> dict[str, Tensor]:
        return picture.for_hf(place, length) if picture else {}

    if case.second_turn:
        turn = torch.randint(3, IMAGE_TOKEN, (case.second_turn,)).tolist()
        prompt = prompt + hf_greedy(hf, prompt, inputs(len(prompt)), 20) + turn
    expected = hf_greedy(hf, prompt, inputs(len(prompt)), NUM_GREEDY)
    tokens = prompt + expected
    logits = hf(input_ids=torch.tensor([tokens]), **inputs(len(tokens))).logits[0]
    if picture:
        assert_image_matters(
            hf, tokens, logits, place, image(42, case.aspect_ratio_id, case.num_tiles, 1)
        )

    def start() -> Any:
        return paged_run(model, [(picture, place) if picture else None], num_tokens=len(tokens))

    whole = start().prefill([tokens])[0]
    torch.testing.assert_close(whole, logits, atol=TOLERANCE, rtol=0)
    run = start()
    cuts = [0, 1, 16, 17, 33, 40, len(prompt)]
    parts = [run.prefill([prompt[a:b]])[0] for a, b in pairwise(cuts) if prompt[a:b]]
    greedy, decoded = run.greedy(parts[-1][-1:], NUM_GREEDY)
    assert greedy[0].tolist() == expected
    torch.testing.assert_close(torch.cat([*parts, decoded[0]]), logits[:-1], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_rows_with_other_images_and_without_share_a_batch(
    random_mllama, saved, ops, paged_run, image
):
    hf = random_mllama(seed=5)
    model = load_model(saved(hf), device="cpu", dtype=torch.float32, backend_ops=ops)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 199, (n,), generator=generator).tolist() for n in (23, 40, 7, 31)]
    seen = [(image(42, 6, 4, 1), 4), None, (image(42, 1, 1, 2), 0), None]
    for prompt, shown in zip(prompts, seen):
        if shown:
            prompt[shown[1]] = IMAGE_TOKEN
    run = paged_run(model, seen, num_tokens=80)
    first = torch.stack([logits[-1] for logits in run.prefill(prompts)])
    greedy, decoded = run.greedy(first, 30)
    for i, (prompt, shown) in enumerate(zip(prompts, seen)):
        tokens = prompt + greedy[i].tolist()
        inputs = shown[0].for_hf(shown[1], len(tokens)) if shown else {}
        logits = hf(input_ids=torch.tensor([tokens]), **inputs).logits[0, len(prompt) - 1 : -1]
        ours = torch.cat([first[i : i + 1], decoded[i]])
        torch.testing.assert_close(ours, logits, atol=TOLERANCE, rtol=0)


def assert_image_matters(hf, tokens, logits, place, other) -> None:
    """Another image changes HF's logits, before the image token as well as after it."""
    changed = hf(input_ids=torch.tensor([tokens]), **other.for_hf(place, len(tokens))).logits[0]
    spread = logits.std()
    difference = (changed - logits).abs().amax(dim=1)
    assert difference[place:].min() > 1e-2 * spread
    assert (difference[:place] > 1e-2 * spread).all()
