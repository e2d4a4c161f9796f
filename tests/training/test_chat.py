"""Label masking against an independent count, on multi-turn conversations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.chat import ChatEncoder

WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20
).filter(lambda text: text.strip() and "<|" not in text)


@pytest.fixture(scope="module")
def tokenizer(mllama_dir):
    return AutoTokenizer.from_pretrained(mllama_dir)


def labelled_spans(example) -> list[list[int]]:
    """Runs of labelled tokens."""
    spans, run = [], []
    for token, is_labelled in zip(example.input_ids.tolist(), example.labelled.tolist()):
        if is_labelled:
            run.append(token)
        elif run:
            spans.append(run)
            run = []
    return [*spans, run] if run else spans


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), has_image=st.booleans())
def test_loss_is_on_replies_and_their_end_only(tokenizer, turns, has_image):
    messages = []
    for index, (question, reply) in enumerate(turns):
        parts = [{"type": "text", "text": question}]
        if has_image and index == 0:
            parts = [{"type": "image"}, *parts]
        messages += [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": reply},
        ]
    example = ChatEncoder(tokenizer).encode(messages)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    expected = [[*tokenizer.encode(r.strip(), add_special_tokens=False), end] for _, r in turns]
    assert labelled_spans(example) == expected
    assert int(example.labelled.sum()) == sum(map(len, expected))
    ids = example.input_ids.tolist()
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|image|>")) == int(has_image)


def test_prompt_is_tokenised_as_when_generating(tokenizer):
    question = [{"role": "user", "content": "What colour is it?"}]
    reply = "\n\n red"
    example = ChatEncoder(tokenizer).encode([*question, {"role": "assistant", "content": reply}])
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert example.input_ids.tolist()[: len(prompt_ids)] == prompt_ids
    assert not example.labelled[: len(prompt_ids)].any()


@pytest.mark.parametrize(("add_bos", "num_bos"), [(None, 1), (False, 1), (True, 2)])
def test_add_bos_is_a_switch(tokenizer, add_bos, num_bos):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    encoder = ChatEncoder(tokenizer, add_bos=add_bos)
    ids = encoder.encode(messages).input_ids.tolist()
    assert ids[: num_bos + 1].count(tokenizer.bos_token_id) == num_bos
    assert encoder.add_bos is bool(add_bos)


def test_text_after_the_end_of_turn_bears_no_loss(mllama_dir):
    tokenizer = AutoTokenizer.from_pretrained(mllama_dir)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|eot_id|>'", "'<|eot_id|>\n'")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    example = ChatEncoder(tokenizer).encode(messages)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    reply = tokenizer.encode("b", add_special_tokens=False)
    assert labelled_spans(example) == [[*reply, end]] * 2


def test_template_that_rewrites_history_is_refused(mllama_dir):
    tokenizer = AutoTokenizer.from_pretrained(mllama_dir)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InvalidInputError, match="rewrites earlier turns"):
        ChatEncoder(tokenizer).encode(messages)


def test_missing_template_is_refused(mllama_dir):
    tokenizer = AutoTokenizer.from_pretrained(mllama_dir)
    tokenizer.chat_template = None
    with pytest.raises(InvalidInputError, match="no chat template"):
        ChatEncoder(tokenizer)
