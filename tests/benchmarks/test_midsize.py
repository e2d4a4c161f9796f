"""The mid-size model's folder: an Mllama that HF and the engine load, saying what SmolLM2 says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.midsize import build_midsize


@pytest.mark.slow
@torch.inference_mode()
def test_midsize_folder_is_smollm2_behind_an_image(smollm2_folder: Path, tmp_path: Path) -> None:
    build_midsize(smollm2_folder, tmp_path)
    model = HFModel(tmp_path)
    assert 180e6 < model.spec.num_parameters < 190e6
    assert model.spec.num_cross_layers == 6
    processor = model.processor
    rendered = processor.render(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hello"}]}]
    )
    ids = processor.encode(rendered)
    place = processor.image_token_position(ids)
    assert place is not None
    text_ids = torch.tensor([[token for token in ids if token != model.spec.image_token_id]])
    language = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    logits = model.model(input_ids=text_ids).logits
    assert torch.equal(logits, language(input_ids=text_ids).logits)
    picture = Path(__file__).resolve().parents[2] / "assets" / "examples" / "scene.png"
    image = processor.preprocess(picture)
    seen = model.model(
        input_ids=torch.tensor([ids]),
        **model.image_inputs(image),
        cross_attention_mask=model.cross_mask(image, [place], len(ids)),
    )
    assert seen.logits.isfinite().all()
