"""Plain sampling: vLLM's meanings of the names, and HF's greedy tokens."""

from __future__ import annotations

import pytest
import torch
from probe import Probe

from stagebeam.engine.errors import CapacityError, InvalidInputError
from stagebeam.engine.params import SamplingParams


def test_greedy_equals_hf_at_every_prompt_length(make_engine, llama) -> None:
    """Prompts of 1 to 33 tokens as one stream of batches."""
    engine = make_engine(llama)
    probe = Probe(engine, keeps_rows=False)
    prompts = ["a"] + [("<R>mnopq" * 9)[:length] for length in range(1, 33)]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    outputs = engine.generate(prompts, greedy)
    assert len({len(output.prompt_token_ids) % 16 for output in outputs}) == 16
    for output in outputs:
        prompt = torch.tensor([output.prompt_token_ids])
        expected = llama.hf.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )[0, prompt.shape[1] :]
        assert output.outputs[0].token_ids == tuple(expected.tolist())
        assert output.outputs[0].finish_reason == "length"
    assert probe.num_decodes < 33 * 12


def test_end_of_sequence_and_its_logprob(make_engine, llama) -> None:
    engine = make_engine(llama)
    eos = engine.processor.tokenizer.eos_token_id
    sampling = SamplingParams(temperature=1.6, top_p=1, top_k=0, max_tokens=200, seed=3, n=8)
    (output,) = engine.generate("abc", sampling)
    ended = [o for o in output.outputs if o.token_ids[-1] == eos]
    assert ended
    for completion in ended:
        assert completion.finish_reason == "stop"
        assert eos not in completion.token_ids[:-1]
        assert "<|eot|>" not in completion.text
        token_ids = (*output.prompt_token_ids, *completion.token_ids)
        logprobs = llama.logits(token_ids).log_softmax(-1)[len(output.prompt_token_ids) - 1 : -1]
        chosen = logprobs[torch.arange(len(logprobs)), torch.tensor(completion.token_ids)]
        assert completion.cumulative_logprob == pytest.approx(chosen.sum().item(), abs=1e-3)


def test_n_samples_share_the_prompt(make_engine, llama) -> None:
    engine = make_engine(llama)
    probe = Probe(engine, keeps_rows=False)
    sampling = SamplingParams(temperature=1, max_tokens=10, seed=1, n=5, ignore_eos=True)
    (output,) = engine.generate(["abc " * 30], sampling)
    assert [o.index for o in output.outputs] == [0, 1, 2, 3, 4]
    assert len({o.token_ids for o in output.outputs}) == 5
    assert probe.num_prefilled == len(output.prompt_token_ids) - 1
    assert probe.decode_sizes == [5] * 10
    two = engine.generate("abc " * 30, SamplingParams(temperature=1, max_tokens=10, seed=1, n=2))
    assert [o.token_ids for o in two[0].outputs] == [o.token_ids for o in output.outputs[:2]]


def test_stop_strings(make_engine, llama) -> None:
    """The text ends before the first stop string, wherever the tokens' seams are."""
    engine = make_engine(llama)
    full = SamplingParams(temperature=1, max_tokens=60, seed=2, n=6, ignore_eos=True)
    stops = ("2g", ";", "π", "hj", "</")
    (free,), (stopped,) = (
        engine.generate("<C>", params)
        for params in (
            full,
            SamplingParams(temperature=1, max_tokens=60, seed=2, n=6, ignore_eos=True, stop=stops),
        )
    )
    num_stopped = 0
    for whole, cut in zip(free.outputs, stopped.outputs):
        places = [whole.text.find(stop) for stop in stops if stop in whole.text]
        if not places:
            assert cut.token_ids == whole.token_ids
            continue
        num_stopped += 1
        assert cut.text == whole.text[: min(places)]
        assert cut.finish_reason == "stop"
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert num_stopped >= 3


def test_seeds_and_begin_of_text(make_engine, llama) -> None:
    engine = make_engine(llama, seed=4)
    bos = engine.processor.tokenizer.bos_token_id
    bare, written = engine.generate(["abc", "<|bos|>abc"], SamplingParams(max_tokens=4, seed=1))
    assert bare.prompt_token_ids == written.prompt_token_ids
    assert bare.prompt_token_ids[0] == bos
    assert bare.prompt_token_ids.count(bos) == 1
    assert bare.outputs[0].token_ids == written.outputs[0].token_ids
    derived = engine.generate(["abc", "abc"], SamplingParams(max_tokens=8, temperature=1))
    assert derived[0].seed != derived[1].seed
    assert engine.generate([]) == []


@pytest.mark.parametrize("prompt", ["", None, 7, b"abc"])
def test_bad_prompts(make_engine, llama, prompt) -> None:
    with pytest.raises(InvalidInputError, match="prompt must be a non-empty string"):
        make_engine(llama).generate([prompt], SamplingParams(max_tokens=4))


def test_prompts_that_do_not_fit(make_engine, llama) -> None:
    engine = make_engine(llama, num_blocks=8, max_branches=4)
    with pytest.raises(CapacityError, match="prompt has 2001 tokens"):
        engine.generate("a" * 2000, SamplingParams(max_tokens=4))
    with pytest.raises(CapacityError, match="5 branches at once but max_branches is 4"):
        engine.generate("a", SamplingParams(max_tokens=4, n=5))
    with pytest.raises(CapacityError, match="KV blocks"):
        engine.generate("a", SamplingParams(max_tokens=100, n=4))


def test_a_vision_checkpoint_without_an_image(make_engine, mllama) -> None:
    """Its cross-attention layers are skipped."""
    engine = make_engine()
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    (output,) = engine.generate("<S>abc", greedy)
    token_ids = (*output.prompt_token_ids, *output.outputs[0].token_ids)
    expected = mllama.logits(token_ids).argmax(-1)[len(output.prompt_token_ids) - 1 : -1]
    assert output.outputs[0].token_ids == tuple(expected.tolist())


def test_any_number_of_stop_strings_over_time(engine) -> None:
    for i in range(70):
        (output,) = engine.generate("a", SamplingParams(max_tokens=1, stop=(f"stop {i}", "end")))
        assert len(output.outputs[0].token_ids) == 1
