"""What must hold whatever the model says: sharing, batching and seeds change no token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from stagebeam import Engine, JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.errors import CapacityError
from stagebeam.engine.outputs import Answer

FREE = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=100, seed=7)


def beam(n: int) -> SearchParams:
    return SearchParams(strategy="stage_beam", beam_size=n)


def tokens(answer: Answer) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in stage.candidates] for stage in answer.stages]


def test_the_same_seed_gives_the_same_answer(
    idle: Engine, scene: Image.Image, question: str
) -> None:
    first, second = (idle.answer(question, scene, search=beam(3), sampling=FREE) for _ in range(2))
    assert tokens(first) == tokens(second)
    assert first.seed == 7


def test_a_derived_seed_is_recorded_and_repeats_the_answer(
    idle: Engine, scene: Image.Image, question: str
) -> None:
    free = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=100)
    first = idle.answer(question, scene, search=beam(2), sampling=free)
    other = idle.answer(question, scene, search=beam(2), sampling=free)
    assert first.seed != other.seed
    again = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=100, seed=first.seed)
    assert tokens(idle.answer(question, scene, search=beam(2), sampling=again)) == tokens(first)


def test_candidates_do_not_depend_on_the_beam_size(
    idle: Engine, scene: Image.Image, question: str
) -> None:
    narrow = idle.answer(question, scene, search=beam(2), sampling=FREE)
    wide = idle.answer(question, scene, search=beam(8), sampling=FREE)
    assert tokens(wide)[0][:2] == tokens(narrow)[0]


def test_an_answer_is_the_same_alone_and_among_32(
    idle: Engine, scene: Image.Image, question: str
) -> None:
    alone = idle.answer(question, scene, search=beam(2), sampling=FREE)
    others = [
        {"question": f"What is at the center? {i}", "image": scene, "search": beam(1 + i % 3)}
        for i in range(31)
    ]
    asked = [*others[:16], {"question": question, "image": scene, "search": beam(2)}, *others[16:]]
    answers = idle.answer_many(asked, sampling=FREE)
    assert [a.question for a in answers] == [q["question"] for q in asked]
    assert tokens(answers[16]) == tokens(alone)


def test_an_image_is_encoded_once_and_a_stage_is_one_batched_decode(scene: Image.Image) -> None:
    with Engine(kv_cache_bytes=32 << 20) as engine:
        judge = JudgeParams(schedule="all")
        answers = engine.answer_many(
            [("How many big crosses are there?", scene)] * 4,
            search=beam(4),
            sampling=FREE,
            judge=judge,
        )
    assert sum(a.usage.image_encodes for a in answers) == 1
    for answer in answers:
        longest = [max(len(ids) for ids in stage) for stage in tokens(answer)]
        assert answer.usage.decode_steps == sum(longest)
        judged = sum(any(m.kind == "judged" for m in s.matches) for s in answer.stages)
        assert answer.usage.judge_rounds == judged
        assert answer.usage.peak_blocks < answer.usage.peak_blocks_unshared


@pytest.mark.parametrize("tournament", ["paper", "knockout", "round_robin"])
def test_the_schedule_does_not_change_the_answer(
    idle: Engine, scene: Image.Image, question: str, tournament: str
) -> None:
    answers = [
        idle.answer(
            question,
            scene,
            search=beam(4),
            sampling=FREE,
            judge=JudgeParams(schedule=schedule, tournament=tournament),
        )
        for schedule in ("all", "played")
    ]
    assert tokens(answers[0]) == tokens(answers[1])
    for a, b in zip(*(answer.stages for answer in answers), strict=True):
        assert [(m.first, m.second, m.winner) for m in a.matches] == [
            (m.first, m.second, m.winner) for m in b.matches
        ]


@pytest.mark.parametrize("num_prompt", range(28, 47))
def test_forked_branches_equal_a_full_recompute(idle: Engine, num_prompt: int) -> None:
    """At every offset inside a block: fork, decode, commit, go on; then the same tokens afresh."""
    greedy = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    with idle.open("a" * (num_prompt - 20), sampling=greedy) as root:
        kids = root.fork(3)
        idle.decode(kids)
        assert len({kid.last.token_ids for kid in kids if kid.last}) == 1
        start = root.snapshot()
        kids[1].commit()
        (kid,) = root.fork(1)
        idle.decode([kid])
        both = kids[1].last.token_ids + kid.last.token_ids  # type: ignore[union-attr]
        root.rollback(start)
        (fresh,) = root.fork(1)
        longer = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
        idle.decode([fresh], sampling=longer)
        assert fresh.last is not None
        assert fresh.last.token_ids == both


def test_freed_blocks_never_show(scene: Image.Image, question: str) -> None:
    """Every block that no branch holds is NaN before each decode step; the answer stays the same."""
    with Engine(kv_cache_bytes=8 << 20) as engine:
        expected = engine.answer(question, scene, search=beam(4), sampling=FREE)
        runner = engine._loop._runner
        pool, decode = engine.kv_cache.pool, runner.decode

        def poisoned(batch, may_run_ahead):  # type: ignore[no-untyped-def]
            used = set()
            for live in engine._loop._running:
                for seq in live.cached_seqs():
                    used |= set(np.asarray(pool.block_table(seq)).tolist())
            for seq in batch.seqs.tolist():
                used |= set(np.asarray(pool.block_table(seq)).tolist())
            free = torch.tensor([b for b in range(pool.num_blocks) if b not in used])
            for k_cache, v_cache in engine.kv_cache.layers:
                k_cache[free] = torch.nan
                v_cache[free] = torch.nan
            return decode(batch, may_run_ahead)

        runner.decode = poisoned  # type: ignore[method-assign]
        assert tokens(engine.answer(question, scene, search=beam(4), sampling=FREE)) == tokens(
            expected
        )


def test_forks_share_all_but_the_last_block(idle: Engine) -> None:
    """1,000 cached tokens, 8 branches that write one token each: 71 blocks with the parent kept."""
    text = "a"
    while True:
        with idle.open(text) as root:
            missing = 1001 - len(root.token_ids)
            if missing == 0:
                kids = root.fork(8)
                idle.decode(kids, sampling=SamplingParams(max_tokens=1, temperature=1.0, seed=1))
                assert idle.stats()["num_used"] == 71
                assert idle.stats()["num_logical"] == 63 * 9
                return
        text += " a" * max(1, missing // 2)


def test_sixteen_questions_in_the_smallest_pool(scene: Image.Image, question: str) -> None:
    """No deadlock: trunks are dropped and prefilled again, and the answers stay the same."""
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64, seed=3)
    asked = [(question, scene)] * 16
    with Engine(kv_cache_bytes=64 << 20, max_model_len=512) as large:
        expected = large.answer_many(asked, search=beam(4), sampling=sampling)
        block_bytes = large.memory.block_bytes
    num_blocks = 32
    while True:
        with Engine(kv_cache_bytes=num_blocks * block_bytes, max_model_len=512) as small:
            try:
                answers = small.answer_many(asked, search=beam(4), sampling=sampling)
            except CapacityError:
                num_blocks += 1
                continue
            assert [tokens(a) for a in answers] == [tokens(a) for a in expected]
            assert sum(a.usage.prefill_passes for a in answers) >= sum(
                a.usage.prefill_passes for a in expected
            )
            stats = small.stats()
            assert stats["num_free"] == stats["num_blocks"] == num_blocks
            return
