"""Sharing changes nothing: every logit that a branch was sampled from equals a full recompute of its
tokens by HF, while every block that nobody owns holds NaN."""

from __future__ import annotations

import pytest
from probe import Probe, assert_nothing_held

from stagebeam.engine.params import JudgeParams, SearchParams


def test_the_image_and_the_context_matter(mllama, engine, image, wide_image) -> None:
    """Otherwise the comparisons below would prove little."""
    processor = engine.processor
    text = processor.render(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}]
    )
    token_ids = tuple(processor.encode(text))
    one, other = (processor.preprocess(picture) for picture in (image, wide_image))
    logits = mllama.logits(token_ids, one)
    spread = logits.std()
    assert (logits - mllama.logits(token_ids, other)).abs().max() > 1e-2 * spread
    changed = (*token_ids[:5], token_ids[5] + 1, *token_ids[6:])
    assert (logits[-1] - mllama.logits(changed, one)[-1]).abs().max() > 1e-2 * spread


@pytest.mark.parametrize(("has_image", "lengths"), [(True, range(1, 34)), (False, range(9, 26))])
def test_branches_at_every_offset_in_a_block(
    make_engine, mllama, image, free_sampling, has_image, lengths
) -> None:
    """Forks, forks of forks, a commit, a rollback and new decodes, from prompts whose ends fall on
    every offset of a block."""
    engine = make_engine(num_blocks=40)
    probe = Probe(engine)
    offsets = set()
    for length in lengths:
        sampling = free_sampling(max_tokens=3, seed=length, ignore_eos=True)
        with engine.open("q" * length, image if has_image else None) as root:
            offsets.add(len(root.token_ids) % 16)
            kids = root.fork(3)
            engine.decode(kids[:2], sampling=sampling)  # one fork stays behind
            start = root.snapshot()
            grandkids = kids[1].fork(2)
            engine.decode([*grandkids, kids[2]], sampling=sampling)  # a group of unequal trunks
            grandkids[1].commit()
            engine.decode([root], sampling=sampling)
            committed = root.token_ids
            root.rollback(start)
            engine.decode(root.fork(2), sampling=sampling)
            engine.decode([root], sampling=sampling)
            assert len(committed) == len(start.token_ids) + 9
    assert offsets == set(range(16))
    assert probe.check_rows(mllama) == len(lengths) * 3 * (2 + 3 + 1 + 2 + 1)
    assert_nothing_held(engine)


def test_a_rolled_back_branch_leaves_no_trace(engine, image, free_sampling) -> None:
    sampling = free_sampling(max_tokens=20, seed=5)
    with engine.open("how many?", image) as root:
        start = root.snapshot()
        engine.decode(root.fork(1), sampling=sampling)
        used = engine.stats()["num_used"]
        (kid,) = root.fork(1)
        engine.decode([kid], sampling=sampling)
        kid.commit()
        root.rollback(start)
        assert root.token_ids == start.token_ids
        assert root.text == ""
        assert engine.stats()["num_used"] < used


@pytest.mark.parametrize("mode", ["logits", "generate"])
def test_whole_searches(make_engine, mllama, image, wide_image, free_sampling, mode) -> None:
    """Stages, judges and malformed branches of questions that share batches and an image."""
    engine = make_engine(num_blocks=300)
    probe = Probe(engine)
    questions = [("first?", image), ("second one?", image), ("third?", wide_image), "no image?"]
    answers = engine.answer_many(
        questions,
        search=SearchParams(beam_size=3),
        sampling=free_sampling(max_tokens=40, seed=2),
        judge=JudgeParams(mode=mode, sampling=free_sampling(max_tokens=6)),
    )
    assert sum(len(answer.stages) for answer in answers) >= 10
    usage = [answer.usage for answer in answers]
    num_sampled = sum(u.completion_tokens + u.judge_completion_tokens for u in usage)
    assert probe.check_rows(mllama) == num_sampled
    assert_nothing_held(engine)


def test_long_prompts_in_chunks(make_engine, mllama, llama, image, free_sampling) -> None:
    """Prompts of several prefill chunks beside short ones, on both architectures."""
    for checkpoint, picture in ((mllama, image), (llama, None)):
        engine = make_engine(checkpoint, num_blocks=400)
        probe = Probe(engine)
        questions = [("word " * n + "?", picture) for n in (1, 300, 110, 103)]
        engine.answer_many(
            questions,
            search=SearchParams(strategy="best_of_n", beam_size=2),
            sampling=free_sampling(max_tokens=4, seed=1),
        )
        assert probe.num_prefills > 2
        assert probe.check_rows(checkpoint) > 0
