"""The objective against HF's own forward and loss."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from stagebeam.training import objective as objective_module
from stagebeam.training.collate import collate
from stagebeam.training.examples import Example, ImageInputs
from stagebeam.training.objective import SFTObjective

IMAGE_TOKEN = 4


@pytest.fixture
def mllama(mllama_dir):
    return AutoModelForImageTextToText.from_pretrained(mllama_dir, dtype=torch.float32).eval()


def make_example(seed: int, length: int, num_tiles: int = 0, key=None) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 300, (length,), generator=generator)
    labelled = torch.rand(length, generator=generator) < 0.5
    image = None
    if num_tiles:
        ids[3] = IMAGE_TOKEN
        pixels = torch.randn(num_tiles, 3, 16, 16, generator=generator)
        # Supported ratios of two tiles, in HF's order: 1x1, 1x2, 2x1.
        image = ImageInputs(pixel_values=pixels, aspect_ratio_id=num_tiles, key=key)
    return Example(input_ids=ids, labelled=labelled, image=image)


def hf_loss(model, example: Example) -> torch.Tensor:
    """The summed loss of one example alone, by HF's forward with HF's masks."""
    ids = example.input_ids[None]
    labels = torch.where(example.labelled, example.input_ids, -100)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if example.image is not None:
        tiles, max_tiles = len(example.image.pixel_values), 2
        pixels = torch.zeros(1, 1, max_tiles, 3, 16, 16)
        pixels[0, 0, :tiles] = example.image.pixel_values
        mask = torch.zeros(1, ids.shape[1], 1, max_tiles, dtype=torch.int64)
        start = int((ids[0] == IMAGE_TOKEN).int().argmax())
        mask[:, start:, :, :tiles] = 1
        inputs |= {
            "pixel_values": pixels,
            "aspect_ratio_ids": torch.tensor([[example.image.aspect_ratio_id]]),
            "aspect_ratio_mask": (torch.arange(max_tiles) < tiles).long()[None, None],
            "cross_attention_mask": mask,
        }
    logits = model(**inputs).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def grads(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "tiles", [(1, 2, 1), (2, 2), (0, 0, 0), (1, 0, 2, 0)], ids=["padded", "full", "text", "mixed"]
)
def test_loss_and_gradients_equal_hf(mllama, tiles):
    examples = [make_example(i, 9 + 4 * i, t) for i, t in enumerate(tiles)]
    expected = sum(hf_loss(mllama, example) for example in examples)
    expected.backward()
    wanted = grads(mllama)
    mllama.zero_grad(set_to_none=True)
    objective = SFTObjective(mllama)
    loss = objective(collate(examples, objective.shape), with_images=any(tiles))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    found = grads(mllama)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=2e-4, msg=name)


def test_image_changes_the_loss(mllama):
    objective = SFTObjective(mllama)
    one, other = make_example(1, 12, 1), make_example(1, 12, 1)
    other.image.pixel_values.mul_(-1)
    losses = [objective(collate([e], objective.shape), True).item() for e in (one, other)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_text_rows_run_on_a_black_image_change_nothing(mllama):
    objective = SFTObjective(mllama)
    batch = collate([make_example(i, 9 + i) for i in range(3)], objective.shape)
    alone = objective(batch, with_images=False)
    with_dummy = objective(batch, with_images=True)
    torch.testing.assert_close(alone, with_dummy, rtol=0, atol=0)
    with_dummy.backward()
    for layer in [*objective.cross_layers(), *objective.vision_layers()]:
        for parameter in layer.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


def test_shared_image_is_encoded_once_and_exact(mllama):
    objective = SFTObjective(mllama)
    shared = make_example(5, 10, 2, key="scene").image
    texts = [make_example(i, 11, 1) for i in range(3)]
    keyed = [Example(input_ids=t.input_ids, labelled=t.labelled, image=shared) for t in texts]
    batch = collate(keyed, objective.shape)
    assert len(batch.images.pixel_values) == 1
    expected = sum(hf_loss(mllama, example) for example in keyed)
    torch.testing.assert_close(objective(batch, True), expected, rtol=1e-5, atol=1e-4)


def test_empty_share_bears_no_loss(mllama):
    objective = SFTObjective(mllama)
    loss = objective(collate([], objective.shape), with_images=True)
    loss.backward()
    assert loss.item() == 0.0


def test_long_batches_are_scored_in_chunks(mllama, monkeypatch):
    objective = SFTObjective(mllama)
    batch = collate([make_example(i, 30, 1) for i in range(3)], objective.shape)
    whole = objective(batch, True)
    monkeypatch.setattr(objective_module, "LOGITS_CHUNK", 7)
    torch.testing.assert_close(objective(batch, True), whole, rtol=1e-6, atol=1e-5)


def test_llama_loss_equals_hf(llama_dir):
    model = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32).eval()
    objective = SFTObjective(model)
    examples = [make_example(i, 8 + 3 * i) for i in range(3)]
    expected = sum(hf_loss(model, example) for example in examples)
    loss = objective(collate(examples, objective.shape), with_images=False)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
