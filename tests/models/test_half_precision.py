"""bfloat16 and float16: no further from float64 than HF in the same type, up to a factor of two."""

from __future__ import annotations

import copy

import pytest
import torch

from stagebeam.engine.models.loader import build_model
from stagebeam.engine.models.spec import ModelSpec

IMAGE_TOKEN = 199


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_error_is_at_most_twice_that_of_hf(dtype, seed, random_mllama, ops, paged_run, image):
    hf = random_mllama(seed=seed, dtype=dtype)
    exact = copy.deepcopy(hf).double()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 199, (90,), generator=generator).tolist()
    place = 20
    tokens[place] = IMAGE_TOKEN
    picture = image(42, 3, 3, seed)
    inputs = picture.for_hf(place, len(tokens))
    truth = exact(input_ids=torch.tensor([tokens]), **inputs).logits[0]
    hf_error = (hf(input_ids=torch.tensor([tokens]), **inputs).logits[0] - truth).abs()

    model = build_model(
        ModelSpec.from_hf(hf.config, {}),
        hf.state_dict(),
        device="cpu",
        dtype=dtype,
        backend_ops=ops,
    )
    run = paged_run(model, [(picture, place)], num_tokens=len(tokens))
    ours = [run.prefill([tokens[:50]])[0], *(run.decode([token]) for token in tokens[50:])]
    error = (torch.cat(ours) - truth).abs()
    allowance = 1e-6 * truth.abs().max()
    assert error.max() <= 2 * hf_error.max() + allowance
    assert error.square().mean().sqrt() <= 2 * hf_error.square().mean().sqrt() + allowance
