"""The bundled checkpoint's promises that hold for any training of it: size, tokenizer, template, HF."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    MllamaForConditionalGeneration,
    MllamaProcessor,
)

from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT as FOLDER
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import SamplingParams, SearchParams
from stagebeam.engine.stages import StagePlan
from stagebeam.training.shapes.encoding import ChatEncoder
from stagebeam.training.shapes.scene import draw_scene
from stagebeam.training.shapes.streams import ShapesStream

MAX_BYTES = 16_000_000
MAX_TOKENS = 1024
PLAN = StagePlan.from_dict(json.loads((FOLDER / "stage_plan.json").read_text()))
TAGS = [tag for stage in PLAN.stages for tag in (stage.open_tag, stage.close_tag)]


def config(name):
    return json.loads((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def encoder():
    return ChatEncoder(Tokenizer.from_file(str(FOLDER / "tokenizer.json")))


def test_size():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".png") <= MAX_BYTES


def test_no_custom_code_is_needed():
    settings = config("config.json")
    assert settings["architectures"] == ["MllamaForConditionalGeneration"]
    assert not [
        name for name in ("config.json", "tokenizer_config.json") if "auto_map" in config(name)
    ]
    assert not list(FOLDER.glob("*.py"))
    model, info = AutoModelForImageTextToText.from_pretrained(FOLDER, output_loading_info=True)
    assert isinstance(model, MllamaForConditionalGeneration)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert isinstance(AutoProcessor.from_pretrained(FOLDER), MllamaProcessor)


def test_one_tile_and_published_sampling():
    assert config("config.json")["vision_config"]["max_num_tiles"] == 1
    assert config("preprocessor_config.json")["max_image_tiles"] == 1
    generation = config("generation_config.json")
    assert (generation["temperature"], generation["top_p"]) == (0.6, 0.9)
    assert generation["do_sample"]
    assert len(config("config.json")["text_config"]["cross_attention_layers"]) >= 1


def test_a_byte_level_bpe_of_at_most_1024_tokens(tokenizer):
    assert len(tokenizer) <= MAX_TOKENS
    assert config("config.json")["text_config"]["vocab_size"] == len(tokenizer)
    saved = config("tokenizer.json")
    assert saved["model"]["type"] == "BPE"
    assert saved["decoder"]["type"] == "ByteLevel"
    assert len(saved["model"]["merges"]) + 256 + len(saved["added_tokens"]) == len(tokenizer)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives(tokenizer, text):
    specials = set(tokenizer.all_special_tokens)
    if not any(special in text for special in specials):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert not specials & set(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("tag", TAGS)
def test_tags_are_plain_text_of_several_tokens(tokenizer, tag):
    vocab = tokenizer.get_vocab()
    assert not [token for token in vocab if tag in token]
    for text in (tag, f"{tag} x", f"x {tag}", f"x {tag}\n\n<"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not set(ids) & set(tokenizer.all_special_ids)
        covering = [
            piece for piece in tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            .offset_mapping
            if piece[0] < text.index(tag) + len(tag) and piece[1] > text.index(tag)
        ]  # fmt: skip
        assert len(covering) >= 2


def test_the_plan_is_four_stages_in_order():
    assert [stage.name for stage in PLAN.stages] == [
        "summary",
        "caption",
        "reasoning",
        "conclusion",
    ]
    assert all(tag == tag.upper() for tag in TAGS)


def test_template_puts_the_image_first_and_one_bos(tokenizer):
    content = [{"type": "image"}, {"type": "text", "text": " What is there? "}]
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "<|image|>What is there?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    messages.append({"role": "assistant", "content": "Yes."})
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == text + "Yes.<|eot_id|>"
    ids = tokenizer.encode(whole, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == config("generation_config.json")["eos_token_id"]
    assert ids.count(config("config.json")["image_token_index"]) == 1


def test_no_reply_needs_more_than_the_model_holds(encoder):
    limit = config("config.json")["text_config"]["max_position_embeddings"]
    budget = sum(stage.max_tokens for stage in PLAN.stages)
    prompts = [
        len(encoder.prompt(ShapesStream("answer", encoder, seed=3).draw(i).question.text, True))
        for i in range(100)
    ]
    assert max(prompts) + budget <= limit


def test_the_engine_asks_as_it_was_trained_and_equals_hf(encoder):
    """Greedy stages: HF's log-probabilities from the ids that a training example begins with."""
    stream = ShapesStream("answer", encoder, seed=9, split="test")
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    greedy = {
        "search": SearchParams(strategy="stage_beam", beam_size=1),
        "sampling": SamplingParams(temperature=0.0, max_tokens=48, seed=0),
    }
    with Engine(kv_cache_bytes=32 << 20) as engine:
        assert engine.default_sampling.temperature == 0.6
        assert engine.default_sampling.top_p == 0.9
        for index in range(3):
            drawn = stream.draw(index)
            picture = draw_scene(drawn.scene, drawn.rng)
            answer = engine.answer(drawn.question.text, image=picture, **greedy)
            ids = encoder.prompt(drawn.question.text, True)
            assert ids == stream[index].input_ids[: len(ids)].tolist()
            assert answer.usage.prompt_tokens == len(ids)
            kept = [stage.candidates[0] for stage in answer.stages]
            spans, whole = [], list(ids)
            for candidate in kept:
                spans.append(range(len(whole), len(whole) + len(candidate.token_ids)))
                whole += candidate.token_ids
            sees = (torch.arange(len(whole)) >= whole.index(model.config.image_token_index)).long()
            with torch.inference_mode():
                logits = model(
                    input_ids=torch.tensor([whole]),
                    pixel_values=stream[index].image.pixel_values[None, None],
                    aspect_ratio_ids=torch.tensor([[1]]),
                    aspect_ratio_mask=torch.tensor([[[1]]]),
                    cross_attention_mask=sees[None, :, None, None],
                ).logits[0]
            logprobs = logits.log_softmax(-1)
            for span, candidate in zip(spans, kept, strict=True):
                wanted = sum(float(logprobs[place - 1, whole[place]]) for place in span)
                assert candidate.cumulative_logprob == pytest.approx(wanted, abs=1e-4 * len(span))
