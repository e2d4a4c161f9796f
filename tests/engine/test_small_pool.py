"""Memory pressure: in the smallest legal cache many questions all finish, with the answers that a
large cache gives, by dropping and prefilling again; what can never fit is refused at once."""

from __future__ import annotations

import pytest
from probe import Probe, assert_nothing_held, choices, held
from tiny_checkpoint import PLAN

from stagebeam.engine.errors import CapacityError
from stagebeam.engine.params import JudgeParams, SearchParams
from stagebeam.engine.scheduler import stage_widths, worst_case_blocks

MAX_MODEL_LEN = 192
MAX_TOKENS = 20
NUM_QUESTIONS = 16


def smallest_pool(num_prompt_tokens: int, search: SearchParams) -> int:
    widths = stage_widths(search, PLAN, MAX_TOKENS)
    return worst_case_blocks(num_prompt_tokens, widths, MAX_MODEL_LEN, 16)


def ask_all(engine, pictures, search, sampling, judge, num_questions=NUM_QUESTIONS):
    with held(engine):
        handles = [
            engine.submit(
                f"number {i:02}?",
                pictures[i % len(pictures)],
                search=search,
                sampling=sampling(MAX_TOKENS, seed=i),
                judge=judge,
            )
            for i in range(num_questions)
        ]
    return [handle.result(120) for handle in handles]


@pytest.mark.parametrize(
    ("strategy", "mode", "schedule"),
    [
        ("stage_beam", "logits", "all"),
        ("stage_beam", "generate", "played"),
        ("best_of_n", "logits", "auto"),
    ],
)
def test_16_questions_in_the_smallest_pool(
    make_engine, image, wide_image, free_sampling, strategy, mode, schedule
) -> None:
    search = SearchParams(strategy=strategy, beam_size=3)
    judge = JudgeParams(mode=mode, schedule=schedule, sampling=free_sampling(max_tokens=6))
    pictures = [image, wide_image, None]
    large = make_engine(num_blocks=2000, max_model_len=MAX_MODEL_LEN)
    plenty = Probe(large, keeps_rows=False)
    expected = ask_all(large, pictures, search, free_sampling, judge)
    assert plenty.num_dropped == 0

    longest = max(answer.usage.prompt_tokens for answer in expected)
    num_blocks = smallest_pool(longest, search)
    small = make_engine(num_blocks=num_blocks, max_model_len=MAX_MODEL_LEN)
    scarce = Probe(small, keeps_rows=False)
    answers = ask_all(small, pictures, search, free_sampling, judge)
    # A row's logits differ by rounding (1e-6) when its batch does: a token would flip only where
    # two scores lie that close, which these seeds do not meet.
    assert list(map(choices, answers)) == list(map(choices, expected))
    if strategy == "stage_beam":  # others have no trunk to drop between their stages
        assert scarce.num_dropped > 0
        assert scarce.num_prefilled > plenty.num_prefilled  # what was dropped came back
    assert small.stats()["peak_used"] <= num_blocks
    assert_nothing_held(small)


def test_one_block_less_is_refused_with_the_arithmetic(make_engine, image, free_sampling) -> None:
    search = SearchParams(beam_size=3)
    with make_engine().open("number 00?", image) as root:
        num_prompt = len(root.token_ids)
    needed = smallest_pool(num_prompt, search)
    arguments = {"search": search, "sampling": free_sampling(MAX_TOKENS)}
    small = make_engine(num_blocks=needed - 1, max_model_len=MAX_MODEL_LEN)
    with pytest.raises(CapacityError) as refusal:
        small.submit("number 00?", image, **arguments)
    for part in (
        f"may need {needed} KV blocks of 16 tokens",
        f"{num_prompt} prompt tokens",
        f"3 branches of up to {MAX_TOKENS} tokens",
        f"context of {MAX_MODEL_LEN}",
        f"has {needed - 1}",
        "lower beam_size",
        f"now {small.memory.kv_cache_bytes}",
    ):
        assert part in str(refusal.value)
    assert_nothing_held(small)
    assert make_engine(num_blocks=needed).answer("number 00?", image, **arguments).stages


def test_rows_are_scarce_too(make_engine, image, free_sampling) -> None:
    """6 questions of 3 branches and generated verdicts through 4 rows."""
    search = SearchParams(beam_size=3)
    judge = JudgeParams(mode="generate", schedule="all", sampling=free_sampling(max_tokens=4))
    narrow = make_engine(max_branches=4)
    probe = Probe(narrow, keeps_rows=False)
    few = ask_all(narrow, [image], search, free_sampling, judge, 6)
    many = ask_all(make_engine(max_branches=256), [image], search, free_sampling, judge, 6)
    assert list(map(choices, few)) == list(map(choices, many))
    assert max(probe.decode_sizes) <= 4


def test_an_idle_session_gives_way_and_comes_back(make_engine, image, free_sampling) -> None:
    """Its trunk is dropped for a question that needs the room, and prefilled when it goes on."""

    def run(engine) -> tuple[list[tuple[int, ...]], object]:
        sampling = free_sampling(MAX_TOKENS, seed=3, ignore_eos=True)
        with engine.open("a session of its own?", image) as root:
            kids = root.fork(2)
            engine.decode(kids, sampling=sampling)
            snapshot = kids[0].snapshot()
            answer = engine.answer("number 00?", image, search=search, sampling=sampling)
            engine.decode(kids, sampling=sampling)
            kids[1].commit()
            engine.decode([root], sampling=sampling)
            return [root.token_ids, snapshot.token_ids], answer

    search = SearchParams(beam_size=3)
    with make_engine().open("number 00?", image) as root:
        num_prompt = len(root.token_ids)
    small = make_engine(num_blocks=smallest_pool(num_prompt, search), max_model_len=MAX_MODEL_LEN)
    scarce = Probe(small, keeps_rows=False)
    tokens, answer = run(small)
    expected_tokens, expected_answer = run(make_engine(max_model_len=MAX_MODEL_LEN))
    assert scarce.num_dropped > 0
    assert tokens == expected_tokens
    assert choices(answer) == choices(expected_answer)


def test_sessions_and_questions_mixed(make_engine, image, free_sampling) -> None:
    """Several sessions between the questions' stages; every block found its way back."""
    search = SearchParams(beam_size=2)
    engine = make_engine(num_blocks=24, max_model_len=MAX_MODEL_LEN)
    probe = Probe(engine, keeps_rows=False)
    sampling = free_sampling(MAX_TOKENS, seed=1)
    roots = [engine.open(f"session {i}?", image) for i in range(4)]
    handles = [engine.submit(f"{i}?", image, search=search, sampling=sampling) for i in range(6)]
    for root in roots:
        kids = root.fork(2)
        engine.decode(kids, sampling=sampling)
        kids[0].commit()
    for handle in handles:
        assert handle.result(60).stages
    for root in roots:
        root.release()
    assert probe.num_dropped > 0
    assert_nothing_held(engine)
