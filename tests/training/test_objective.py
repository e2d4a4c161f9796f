"""The objective against HF's own forward and loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    MllamaProcessor,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from stagebeam.training import objective as objective_module
from stagebeam.training.attention import SHORT_ROWS
from stagebeam.training.collate import collate
from stagebeam.training.data import ImageReader
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


def test_text_only_rows_are_as_hf_has_them_alone(mllama, mllama_dir):
    """HF's processor gives a text-only row of a mixed batch an empty image, and HF's model lets the
    row attend to it (only its MLP output is masked), so its loss depends on what shares the batch.
    Alone, which is how it is answered, it skips the cross layers: that is what is trained here."""
    tokenizer = AutoTokenizer.from_pretrained(mllama_dir)
    tokenizer.padding_side = "right"
    images = MllamaImageProcessorPil.from_pretrained(mllama_dir)
    processor = MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    reader = ImageReader(mllama_dir)
    picture = Image.effect_noise((16, 30), 90).convert("RGB")
    texts = ["<|image|>Which colour is the square?", "How many red circles?"]
    options = {"padding": True, "return_tensors": "pt", "add_special_tokens": False}
    batch = processor(images=[[picture], []], text=texts, **options)
    assert batch["aspect_ratio_ids"].tolist()[1] == [0]
    assert not batch["cross_attention_mask"][1].any()
    examples = []
    for row, image in enumerate((reader.prepare(picture), None)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        examples.append(Example(input_ids=ids, labelled=torch.arange(len(ids)) > 0, image=image))

    def losses(inputs):
        ids = inputs["input_ids"]
        logits = mllama(**inputs).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        return (each.view(len(ids), -1) * inputs["attention_mask"][:, 1:]).sum(1)

    objective = SFTObjective(mllama)
    with torch.no_grad():
        mixed = losses(batch)
        alone = [
            losses(processor(images=[[picture]], text=texts[:1], **options))[0],
            losses(processor(text=texts[1:], **options))[0],
        ]
        ours = [
            objective(collate([one], objective.shape), one.image is not None) for one in examples
        ]
        both = objective(collate(examples, objective.shape), True)
    torch.testing.assert_close(mixed[0], alone[0], rtol=1e-5, atol=1e-4)
    assert abs(mixed[1] - alone[1]) > 1e-3
    torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(both, sum(alone), rtol=1e-5, atol=1e-4)


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


def test_weights_scale_each_labels_share(mllama):
    objective = SFTObjective(mllama)
    plain = make_example(3, 12)
    weights = torch.rand(12)
    weighted = replace(plain, weights=weights)
    batch = collate([weighted], objective.shape)
    with torch.no_grad():
        logits = mllama(input_ids=plain.input_ids[None]).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], plain.input_ids[1:], reduction="none")
    kept = plain.labelled[1:]
    wanted = (losses * weights[1:])[kept].sum()
    torch.testing.assert_close(objective(batch, False), wanted, rtol=1e-5, atol=1e-5)
    assert batch.total_weight == pytest.approx(weights[1:][kept].sum().item(), rel=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_early_labels_are_read_before_the_last_layers(mllama, num_layers):
    """The same loss as of a model that has lost its last layers; the other labels keep theirs."""
    objective = SFTObjective(mllama)
    plain = make_example(4, 12)
    is_early = torch.arange(12) < 6
    layer = is_early.long() * num_layers
    early = replace(plain, labelled=plain.labelled & is_early, early=layer)
    late = replace(plain, labelled=plain.labelled & ~is_early)
    both = replace(plain, early=layer)
    loss = {
        name: objective(collate([one], objective.shape), False).item()
        for name, one in {"early": early, "late": late, "both": both}.items()
    }
    assert loss["both"] == pytest.approx(loss["early"] + loss["late"], rel=1e-5)
    unmarked = replace(early, early=None)
    assert loss["early"] != pytest.approx(
        objective(collate([unmarked], objective.shape), False).item(), rel=1e-3
    )
    layers = mllama.model.language_model.layers
    last = layers[-num_layers:]
    del layers[-num_layers:]
    try:
        shorter = SFTObjective(mllama)(collate([unmarked], objective.shape), False).item()
    finally:
        layers.extend(last)
    assert loss["early"] == pytest.approx(shorter, rel=1e-5)


@pytest.mark.parametrize("num_tiles", [0, 1, 2])
def test_attention_for_short_rows_equals_sdpa(mllama_dir, num_tiles):
    losses = []
    for attention in ("sdpa", SHORT_ROWS):
        model = AutoModelForImageTextToText.from_pretrained(
            mllama_dir, dtype=torch.float32, attn_implementation=attention
        )
        objective = SFTObjective(model)
        examples = [make_example(5, 9), make_example(6, 17, num_tiles)]
        loss = objective(collate(examples, objective.shape), num_tiles > 0)
        loss.backward()
        losses.append([loss.item(), *(p.grad.norm().item() for p in model.lm_head.parameters())])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
