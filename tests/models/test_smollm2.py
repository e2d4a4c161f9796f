"""SmolLM2-135M's real weights: greedy tokens against HF, alone and as the text layers of an Mllama."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

from stagebeam.engine.models.loader import build_model, load_model, read_spec
from stagebeam.engine.models.processor import load_processor
from stagebeam.engine.models.spec import ModelSpec

NUM_GREEDY = 100
CROSS_LAYERS = [5, 11, 17, 23, 29, 35]
PROMPTS = (
    "Why is the sky blue?",
    "Name three rivers in Europe.",
    "Write a haiku about winter.",
    "What is 17 times 3?",
    "Explain photosynthesis to a child.",
    "Who wrote Hamlet?",
    "List the planets of the solar system.",
    "What does HTTP stand for?",
    "Translate 'good morning' to French.",
    "How do I boil an egg?",
    "Give me a synonym for happy.",
    "What causes tides?",
    "Write a Python function that adds two numbers.",
    "Tell me a fact about octopuses.",
    "What is the capital of Australia?",
    "Describe a sunset in one sentence.",
    "Why do leaves change colour in autumn?",
    "What is the difference between a virus and a bacterium?",
    "Suggest a name for a cat.",
    "How many sides has a hexagon?",
)


@pytest.fixture(scope="module", autouse=True)
def _all_threads() -> Iterator[None]:
    """A real model is worth more than the one thread that tiny ones get."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()


@torch.inference_mode()
def test_greedy_tokens_of_twenty_prompts_equal_hf(smollm2_folder, smollm2, ops, paged_run):
    model = load_model(smollm2_folder, device="cpu", dtype=torch.float32, backend_ops=ops)
    processor = load_processor(smollm2_folder, read_spec(smollm2_folder))
    texts = [processor.render([{"role": "user", "content": text}]) for text in PROMPTS]
    prompts = [processor.encode(text) for text in texts]

    run = paged_run(model, [None] * len(prompts), num_tokens=NUM_GREEDY + max(map(len, prompts)))
    first = torch.stack([logits[-1] for logits in run.prefill(prompts)])
    greedy = run.greedy(first, NUM_GREEDY)[0].tolist()
    for prompt, tokens in zip(prompts, greedy):
        # HF's choice after every prefix of ours: all equal means that its greedy tokens are these.
        logits = smollm2(input_ids=torch.tensor([prompt + tokens[:-1]])).logits[0]
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == tokens
    assert "scattering" in processor.decode(greedy[0])


@pytest.mark.slow
@torch.inference_mode()
def test_greedy_tokens_of_twenty_prompts_equal_hf_generate(smollm2_folder, smollm2, ops, paged_run):
    """The same against `generate` itself, which takes minutes on a CPU."""
    model = load_model(smollm2_folder, device="cpu", dtype=torch.float32, backend_ops=ops)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder, padding_side="left")
    inputs = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    smollm2.generation_config.eos_token_id = None
    out = smollm2.generate(
        **inputs, do_sample=False, max_new_tokens=NUM_GREEDY, pad_token_id=tokenizer.pad_token_id
    )
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    run = paged_run(model, [None] * len(prompts), num_tokens=NUM_GREEDY + max(map(len, prompts)))
    first = torch.stack([logits[-1] for logits in run.prefill(prompts)])
    greedy = run.greedy(first, NUM_GREEDY)[0].tolist()
    assert greedy == out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def midsize(smollm2) -> MllamaForConditionalGeneration:
    """An Mllama whose self-attention layers are SmolLM2's; cross layers inserted, gates at zero."""
    text = smollm2.config
    config = MllamaConfig(
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_global_layers": 2,
            "attention_heads": 4,
            "intermediate_size": 256,
            "vision_output_dim": 384,
            "image_size": 112,
            "patch_size": 14,
            "intermediate_layers_indices": [1, 3],
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers + len(CROSS_LAYERS),
            "cross_attention_layers": CROSS_LAYERS,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "intermediate_size": text.intermediate_size,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_parameters": dict(text.rope_parameters),
            "max_position_embeddings": text.max_position_embeddings,
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.eos_token_id,
        },
        image_token_index=text.vocab_size,
    )
    torch.manual_seed(0)
    model = MllamaForConditionalGeneration(config).eval()
    decoder = model.model.language_model
    own = [layer for i, layer in enumerate(decoder.layers) if i not in CROSS_LAYERS]
    for layer, real in zip(own, smollm2.model.layers, strict=True):
        layer.load_state_dict(real.state_dict())
    decoder.norm.load_state_dict(smollm2.model.norm.state_dict())
    # The image token gets a real token's embedding: a random one is so short that float32 itself
    # is off by more than the tolerance in its row.
    words = smollm2.model.embed_tokens.weight.data
    decoder.embed_tokens.weight.data.copy_(torch.cat((words, words[:8])))
    model.lm_head.weight.data = smollm2.lm_head.weight.data.clone()
    return model


@torch.inference_mode()
def test_midsize_mllama_equals_hf(smollm2_folder, smollm2, midsize, ops, paged_run, image):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    prompt = tokenizer("<|im_start|>user\nWhat is in the picture?<|im_end|>\n")["input_ids"]
    place = 3
    shown, other = image(112, 6, 4), image(112, 6, 4, 1)
    tokens = [*prompt[:place], midsize.config.image_token_index, *prompt[place:]]

    def hf_logits(picture):
        return midsize(input_ids=torch.tensor([tokens]), **picture.for_hf(place, len(tokens)))

    # At zero gates the image has no effect and the text model is SmolLM2 exactly.
    text_logits = smollm2(input_ids=torch.tensor([prompt])).logits
    assert torch.equal(midsize(input_ids=torch.tensor([prompt])).logits, text_logits)
    assert torch.equal(hf_logits(shown).logits, hf_logits(other).logits)

    for name, parameter in midsize.named_parameters():
        if name.endswith(("gate", "gate_attn", "gate_ffn")):
            parameter.data.uniform_(0.3, 1).mul_(torch.randint(0, 2, (1,)) * 2 - 1)
    logits = hf_logits(shown).logits[0]
    assert (hf_logits(other).logits[0] - logits).abs().max() > 1e-2 * logits.std()

    spec = ModelSpec.from_hf(midsize.config, {})
    model = build_model(
        spec, midsize.state_dict(), device="cpu", dtype=torch.float32, backend_ops=ops
    )
    run = paged_run(model, [(shown, place)], num_tokens=100)
    ours = run.prefill([tokens])[0]
    # The image token's embedding is short: HF's own float32 may be off by more than 1e-4 in its row.
    exact_inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in shown.for_hf(place, len(tokens)).items()
    }
    exact = deepcopy(midsize).double()(input_ids=torch.tensor([tokens]), **exact_inputs).logits[0]
    error, hf_error = ((found - exact).abs().amax(1) for found in (ours, logits))
    assert (error <= (2 * hf_error).clamp(min=1e-4)).all(), (error, hf_error)

    midsize.generation_config.eos_token_id = None
    out = midsize.generate(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        do_sample=False,
        max_new_tokens=40,
        **shown.for_hf(place, len(tokens)),
    )
    assert run.greedy(ours[-1:], 40)[0][0].tolist() == out[0, len(tokens) :].tolist()
