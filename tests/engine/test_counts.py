"""What sharing saves, counted: encodes, decode steps, judge rounds and blocks."""

from __future__ import annotations

import pytest
from probe import Probe, held

from stagebeam.engine.events import CandidateFinished, StageStarted
from stagebeam.engine.params import JudgeParams, SearchParams


@pytest.mark.parametrize("beam_size", [1, 4])
def test_an_image_is_encoded_once_a_question(make_engine, image, free_sampling, beam_size) -> None:
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    answer = engine.answer(
        "how many?",
        image,
        search=SearchParams(beam_size=beam_size),
        sampling=free_sampling(max_tokens=40, seed=2),
    )
    assert len(answer.stages) == 4 or beam_size == 1
    assert answer.usage.image_encodes == probe.num_encodes == 1


def test_an_image_is_encoded_once_for_many_questions(
    make_engine, image, wide_image, free_sampling
) -> None:
    """At the same time and later, whatever form it comes in."""
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    pictures = [image, wide_image, image.copy(), image]
    answers = engine.answer_many(
        [(f"{i}?", picture) for i, picture in enumerate(pictures)], sampling=free_sampling(8)
    )
    assert [answer.usage.image_encodes for answer in answers] == [1, 1, 0, 0]
    assert engine.answer("q?", wide_image, sampling=free_sampling(8)).usage.image_encodes == 0
    assert probe.num_encodes == 2


def test_images_beyond_the_slots_are_encoded_again(
    make_engine, image, wide_image, free_sampling
) -> None:
    engine = make_engine(num_image_slots=1)
    probe = Probe(engine, keeps_rows=False)
    answers = engine.answer_many(
        [("q?", picture) for picture in (image, image, wide_image, image)],
        sampling=free_sampling(8),
    )
    assert [answer.usage.image_encodes for answer in answers] == [1, 0, 1, 1]
    assert probe.num_encodes == 3


def test_a_stage_is_one_batched_decode(make_engine, image, free_sampling) -> None:
    """As many steps as its longest candidate has tokens; whoever ends leaves the batch at once."""
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    answer = engine.answer(
        "how many?",
        image,
        search=SearchParams(beam_size=6),
        sampling=free_sampling(max_tokens=40, seed=2),
    )
    lengths = [[len(c.token_ids) for c in stage.candidates] for stage in answer.stages]
    assert len(lengths) == 4
    assert any(len(set(stage)) > 2 for stage in lengths)
    assert answer.usage.decode_steps == probe.num_decodes == sum(map(max, lengths))
    assert answer.usage.completion_tokens == sum(map(sum, lengths))
    expected = [sum(n > step for n in stage) for stage in lengths for step in range(max(stage))]
    assert probe.decode_sizes == expected
    assert answer.usage.malformed_candidates == sum(
        c.finish_reason != "tag" for stage in answer.stages for c in stage.candidates
    )


def test_questions_share_steps_and_passes(make_engine, image, free_sampling) -> None:
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    search = SearchParams(strategy="best_of_n", beam_size=3)
    sampling = free_sampling(max_tokens=12, ignore_eos=True)
    with held(engine):
        handles = [
            engine.submit(f"{i}?", image, search=search, sampling=sampling) for i in range(4)
        ]
    for handle in handles:
        handle.result(30)
    assert probe.num_prefills == 1
    assert probe.num_decodes == 12
    assert probe.decode_sizes[:8] == [12] * 8


@pytest.mark.parametrize("tournament", ["paper", "knockout", "round_robin"])
def test_one_judge_round_a_stage(make_engine, image, free_sampling, tournament) -> None:
    """With schedule "all"; "played" needs more rounds and fewer prompts for the same answer."""
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    results = {}
    for schedule in ("all", "played"):
        before = probe.num_prefills
        answer = engine.answer(
            "how many?",
            image,
            search=SearchParams(beam_size=4),
            sampling=free_sampling(max_tokens=40, seed=2),
            judge=JudgeParams(schedule=schedule, tournament=tournament),
        )
        judged = [[m for m in stage.matches if m.kind == "judged"] for stage in answer.stages]
        results[schedule] = (answer, sum(map(bool, judged)), probe.num_prefills - before)
    (all_answer, num_judged, num_prefills), (played, _, _) = results["all"], results["played"]
    assert num_judged == 4
    assert all_answer.usage.judge_rounds == num_judged
    assert num_prefills == 1 + num_judged  # the prompt's, and one ragged pass a round
    assert all_answer.usage.decode_steps == played.usage.decode_steps
    assert all_answer.usage.judge_completion_tokens == 0
    assert played.usage.judge_calls <= all_answer.usage.judge_calls
    for stage, other in zip(all_answer.stages, played.stages, strict=True):
        assert [c.token_ids for c in stage.candidates] == [c.token_ids for c in other.candidates]
        assert [(m.first, m.second, m.winner) for m in stage.matches] == [
            (m.first, m.second, m.winner) for m in other.matches
        ]


def test_judge_prompts_share_what_they_have_in_common(make_engine, image, free_sampling) -> None:
    """The head is prefilled once a round, and the first candidate once for the pairs it begins."""
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    answer = engine.answer(
        "how many? " * 20,
        image,
        search=SearchParams(strategy="best_of_n", beam_size=4),
        sampling=free_sampling(max_tokens=120, seed=2),
        judge=JudgeParams(schedule="all"),
    )
    usage = answer.usage
    candidates = answer.stages[0].candidates
    lengths = [len(c.token_ids) for c in candidates if c.finish_reason == "tag"]
    num_judged = len(lengths)
    assert num_judged >= 3
    assert usage.judge_calls == num_judged * (num_judged - 1)  # every pair in both orders
    assert probe.num_prefilled == usage.prompt_tokens - 1 + usage.judge_prompt_tokens
    # Sharing is by whole blocks: up to 15 tokens a prompt come again, beside the turn's end.
    head, firsts, seconds = usage.prompt_tokens, sum(lengths), (num_judged - 1) * sum(lengths)
    assert usage.judge_prompt_tokens < head + firsts + seconds + usage.judge_calls * 32


@pytest.mark.parametrize(("keeps_parent", "num_blocks"), [(False, 70), (True, 71)])
def test_the_blocks_of_a_fork_at_1000_tokens(
    make_engine, image, free_sampling, keeps_parent, num_blocks
) -> None:
    """8 branches of 1,000 cached tokens that write one token each, against 504 blocks unshared."""
    engine = make_engine()
    with engine.open("x", image) as probe_root:
        overhead = len(probe_root.token_ids)
    long_question = "x" * (1 + 62 * 16 + 1 - overhead)
    with engine.open(long_question, image) as root:
        assert len(root.token_ids) - 1 == 62 * 16  # the last token is not cached yet
        (parent,) = root.fork(1)
        engine.decode([parent], sampling=free_sampling(max_tokens=8, ignore_eos=True))
        kids = parent.fork(8)
        used = engine.stats()["num_used"]
        if not keeps_parent:
            parent.release()
        engine.decode(kids, sampling=free_sampling(max_tokens=1, ignore_eos=True))
        stats = engine.stats()
        assert used == 63
        assert stats["num_used"] == num_blocks
        assert stats["num_logical"] == 8 * 63 + 62 + 63 * keeps_parent  # 62 are the root's
        assert root.usage.peak_blocks == num_blocks
        assert root.usage.peak_blocks_unshared == stats["num_logical"]


def test_a_stages_blocks_are_in_the_usage(make_engine, image, free_sampling) -> None:
    engine = make_engine()
    answer = engine.answer(
        "how many? " * 40,
        image,
        search=SearchParams(strategy="best_of_n", beam_size=8),
        sampling=free_sampling(max_tokens=16, seed=1, ignore_eos=True),
    )
    prompt = answer.usage.prompt_tokens - 1  # the last token is each branch's own
    trunk, held = -(-prompt // 16), -(-(prompt + 16) // 16)
    assert answer.usage.peak_blocks == trunk + 8 * (held - prompt // 16)
    assert answer.usage.peak_blocks_unshared == trunk + 8 * held


def test_events_say_how_wide_a_stage_is(engine, image, free_sampling) -> None:
    handle = engine.submit(
        "how many?", image, search=SearchParams(beam_size=3), sampling=free_sampling(seed=2)
    )
    events = list(handle.events())
    for started in (event for event in events if isinstance(event, StageStarted)):
        ended = [e for e in events if isinstance(e, CandidateFinished) and e.stage == started.stage]
        assert len(ended) == started.num_candidates == 3


@pytest.mark.parametrize("both_orders", [True, False])
def test_later_judge_rounds_keep_what_the_earlier_have_in_common(
    make_engine, image, free_sampling, both_orders
) -> None:
    """The head is prefilled once a tournament, a first candidate once for all its matches."""
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    answer = engine.answer(
        "how many? " * 40,
        image,
        search=SearchParams(strategy="best_of_n", beam_size=4),
        sampling=free_sampling(max_tokens=120, seed=2),
        judge=JudgeParams(schedule="played", both_orders=both_orders),
    )
    usage, stage = answer.usage, answer.stages[0]
    lengths = [len(candidate.token_ids) for candidate in stage.candidates]
    rows = [(m.first, m.second) for m in stage.matches if m.kind == "judged"]
    assert usage.judge_rounds >= 2
    if both_orders:
        rows += [(b, a) for a, b in rows]
    assert usage.judge_calls == len(rows)
    assert len({first for first, _ in rows}) < len(rows) or not both_orders
    firsts = sum(lengths[first] for first in {first for first, _ in rows})
    seconds = sum(lengths[second] for _, second in rows)
    most = usage.prompt_tokens + firsts + seconds + len(rows) * 32
    assert most < usage.judge_rounds * usage.prompt_tokens + firsts + seconds
    assert usage.judge_prompt_tokens < most
    assert probe.num_prefilled == usage.prompt_tokens - 1 + usage.judge_prompt_tokens
