"""The same seed gives the same tokens: whatever the width, whoever else runs, again and again."""

from __future__ import annotations

import pytest
from probe import choices, held

from stagebeam.engine.params import JudgeParams, SearchParams

BEAM = SearchParams(beam_size=3)


@pytest.mark.parametrize("mode", ["logits", "generate"])
def test_same_seed_same_answer(make_engine, image, free_sampling, mode) -> None:
    judge = JudgeParams(mode=mode, sampling=free_sampling(max_tokens=5))
    answers = [
        make_engine(seed=number).answer(
            "how many?", image, search=BEAM, sampling=free_sampling(seed=2), judge=judge
        )
        for number in (0, 1)
    ]
    assert len(answers[0].stages) == 4
    assert choices(answers[0]) == choices(answers[1])
    assert answers[0].seed == answers[1].seed == 2


def test_another_seed_another_answer(engine, image, free_sampling) -> None:
    texts = {
        engine.answer("how many?", image, search=BEAM, sampling=free_sampling(seed=seed)).text
        for seed in (0, 1, 2**32, 2**64 - 1)
    }
    assert len(texts) == 4


@pytest.mark.parametrize("strategy", ["stage_beam", "best_of_n", "sentence_beam"])
def test_candidates_do_not_depend_on_the_width(engine, image, free_sampling, strategy) -> None:
    narrow, wide = (
        engine.answer(
            "how many?",
            image,
            search=SearchParams(strategy=strategy, beam_size=beam_size),
            sampling=free_sampling(seed=2),
        )
        for beam_size in (2, 8)
    )
    few, many = narrow.stages[0].candidates, wide.stages[0].candidates
    assert [c.token_ids for c in few] == [c.token_ids for c in many[:2]]
    assert len({c.token_ids for c in many}) == 8


def test_a_single_pass_is_candidate_0_of_best_of_n(engine, image, free_sampling) -> None:
    one, many = (
        engine.answer(
            "how many?",
            image,
            search=SearchParams(strategy=strategy, beam_size=3),
            sampling=free_sampling(max_tokens=60, seed=2),
        )
        for strategy in ("single", "best_of_n")
    )
    assert one.text == many.stages[0].candidates[0].text
    assert one.usage.completion_tokens == len(many.stages[0].candidates[0].token_ids)


def test_beam_size_1_is_a_plain_sample_of_each_stage(engine, free_sampling) -> None:
    """The trunk so far and the same place in the search: nothing but the stages' tags is added."""
    narrow = SearchParams(beam_size=1)
    answer = engine.answer("how many?", search=narrow, sampling=free_sampling(seed=2))
    assert answer.usage.judge_calls == 0
    assert answer.text == "".join(stage.candidates[0].text for stage in answer.stages)


def test_alone_and_among_32(make_engine, image, wide_image, free_sampling) -> None:
    pictures = [image, wide_image, None]
    questions = [
        {
            "question": f"{'why ' * (i % 5)}{i}?",
            "image": pictures[i % 3],
            "search": SearchParams(beam_size=1 + i % 4),
            "sampling": free_sampling(max_tokens=16 + i % 7, seed=i),
            "judge": JudgeParams(
                mode="generate" if i % 8 == 0 else "logits", sampling=free_sampling(max_tokens=4)
            ),
        }
        for i in range(32)
    ]
    crowd = make_engine()
    with held(crowd):
        handles = [crowd.submit(**question) for question in questions]
    together = [handle.result(120) for handle in handles]
    alone = make_engine()
    for question, answer in list(zip(questions, together))[::3]:
        assert choices(alone.answer(**question)) == choices(answer)
    assert sum(len(answer.stages) for answer in together) > 64


def test_seeds_are_derived_and_recorded(make_engine, free_sampling) -> None:
    questions = [f"{i}?" for i in range(4)]
    first, second, other = (
        make_engine(seed=seed).answer_many(questions, search=BEAM, sampling=free_sampling(16))
        for seed in (5, 5, 6)
    )
    seeds = [answer.seed for answer in first]
    assert len({*seeds, *(answer.seed for answer in other)}) == 8
    assert max(seeds) > 2**32
    assert [answer.seed for answer in second] == seeds
    assert list(map(choices, first)) == list(map(choices, second))
    again = make_engine(seed=9).answer(
        "2?", search=BEAM, sampling=free_sampling(16, seed=first[2].seed)
    )
    assert choices(again) == choices(first[2])


def test_answers_come_in_the_questions_order(engine, free_sampling) -> None:
    """Short questions end first and still wait for their turn."""
    lengths = [40, 2, 30, 1, 20]
    answers = engine.answer_many(
        [
            {
                "question": f"number {i}",
                "search": SearchParams(strategy="best_of_n", beam_size=2),
                "sampling": free_sampling(max_tokens=n, ignore_eos=True),
            }
            for i, n in enumerate(lengths)
        ]
    )
    assert [answer.question for answer in answers] == [f"number {i}" for i in range(5)]


def test_sessions_are_reproducible(make_engine, image, free_sampling) -> None:
    def run(engine, num_forks: int) -> tuple[int, ...]:
        with engine.open("how many?", image, sampling=free_sampling(16, seed=3)) as root:
            kids = root.fork(num_forks)
            engine.decode(kids)
            kids[1].commit()
            engine.decode([root])
            return root.token_ids

    engine = make_engine()
    crowd = [engine.submit(f"{i}?", image, sampling=free_sampling(16)) for i in range(4)]
    among = run(engine, 8)
    for handle in crowd:
        handle.result(30)
    assert among == run(make_engine(), 2)
