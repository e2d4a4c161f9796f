"""Decoding ahead over static buffers: the tokens, blocks and answers of the plain runner."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from stagebeam.engine.engine import Engine
from stagebeam.engine.errors import CancelledError, InvalidInputError
from stagebeam.engine.models.loader import build_model
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.step.graphs import GraphRunner
from stagebeam.engine.step.static_step import StaticStep, StepShape, round_up
from stagebeam.kernels.registry import resolve

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)


def beam(n: int, strategy: str = "stage_beam") -> SearchParams:
    return SearchParams(strategy=strategy, beam_size=n)


def told(answer) -> list[object]:
    """What must not depend on how far ahead the engine decodes."""
    stages = [
        [(c.token_ids, c.finish_reason, c.cumulative_logprob) for c in stage.candidates]
        for stage in answer.stages
    ]
    usage = answer.usage
    return [answer.text, stages, usage.completion_tokens, usage.decode_steps, usage.judge_calls]


def assert_same(got, expected) -> None:
    (text, stages, *counts), (wanted_text, wanted_stages, *wanted_counts) = (
        told(got),
        told(expected),
    )
    assert text == wanted_text
    assert counts == wanted_counts
    for stage, wanted_stage in zip(stages, wanted_stages, strict=True):
        for (ids, reason, logprob), (wanted_ids, wanted_reason, wanted_logprob) in zip(
            stage, wanted_stage, strict=True
        ):
            assert ids == wanted_ids
            assert reason == wanted_reason
            assert logprob == pytest.approx(wanted_logprob, abs=1e-3)


@pytest.mark.parametrize(
    ("poll_steps", "judge"), [(1, "logits"), (3, "logits"), (8, "generate"), (64, "logits")]
)
def test_answers_are_the_plain_runners(make_engine, image, free_sampling, poll_steps, judge):
    options = {
        "search": beam(4),
        "sampling": free_sampling(40, seed=11),
        "judge": JudgeParams(mode=judge),
    }
    plain = make_engine().answer("ab?", image, **options)
    engine = make_engine(backend="reference", poll_steps=poll_steps)
    assert isinstance(engine._loop._runner, GraphRunner)
    assert_same(engine.answer("ab?", image, **options), plain)
    engine.kv_cache.pool.check()


@pytest.mark.parametrize("strategy", ["best_of_n", "sentence_beam", "single", "greedy"])
def test_every_search(make_engine, wide_image, free_sampling, strategy):
    options = {"search": beam(3, strategy), "sampling": free_sampling(30, seed=5)}
    expected = make_engine().answer("cd", wide_image, **options)
    assert_same(
        make_engine(backend="reference", poll_steps=5).answer("cd", wide_image, **options), expected
    )


def test_questions_that_join_and_leave_each_other(make_engine, image, wide_image, free_sampling):
    """With and without an image, short and long, so rows join while others are ahead."""
    asked = [
        {"question": "ab" * (1 + 7 * i), "image": [None, image, wide_image][i % 3]}
        for i in range(7)
    ]
    options = {"search": beam(3), "sampling": free_sampling(25, seed=2)}
    expected = make_engine().answer_many(asked, **options)
    engine = make_engine(backend="reference", poll_steps=6)
    for got, wanted in zip(engine.answer_many(asked, **options), expected, strict=True):
        assert [[c.token_ids for c in s.candidates] for s in got.stages] == [
            [c.token_ids for c in s.candidates] for s in wanted.stages
        ]


def test_a_text_model(make_engine, llama, free_sampling):
    options = {"search": beam(4), "sampling": free_sampling(30, seed=3)}
    expected = make_engine(llama).answer("efg", **options)
    assert_same(
        make_engine(llama, backend="reference", poll_steps=7).answer("efg", **options), expected
    )


def test_the_batch_is_compacted_as_branches_finish(make_engine, image, free_sampling):
    engine = make_engine(backend="reference", poll_steps=2)
    runner, sizes = engine._loop._runner, []
    run_ahead = runner._run_ahead

    def watched(rows, num_steps):
        run_ahead(rows, num_steps)
        sizes.append(len(rows))

    runner._run_ahead = watched
    engine.answer("ab", image, search=beam(6), sampling=free_sampling(60, seed=4))
    assert max(sizes) == 6
    assert min(sizes) < 4
    used = {shape.num_rows for shape in runner._graphs}
    assert used == {round_up(size) for size in sizes}
    assert {shape.has_image for shape in runner._graphs} == {True}


def test_blocks_that_nobody_owns_are_not_read(make_engine, image, free_sampling):
    options = {"search": beam(4), "sampling": free_sampling(40, seed=12)}
    expected = make_engine().answer("ab", image, **options)
    engine = make_engine(backend="reference", poll_steps=5)
    runner, pool = engine._loop._runner, engine.kv_cache.pool
    run_ahead = runner._run_ahead

    def poisoned(rows, num_steps):
        owned = [seq for q in engine._loop._running for seq in q.cached_seqs()]
        used = np.zeros(pool.num_blocks, dtype=bool)
        for seq in owned:
            used[pool.block_table(seq)] = True
        free = torch.from_numpy(np.flatnonzero(~used))
        for k_cache, v_cache in engine.kv_cache.layers:
            k_cache[free] = torch.nan
            v_cache[free] = torch.nan
        run_ahead(rows, num_steps)

    runner._run_ahead = poisoned
    assert_same(engine.answer("ab", image, **options), expected)


def test_overshoot_gives_its_blocks_back(make_engine, free_sampling):
    """A window far past every end: the branches' lengths in the pool are their tokens'."""
    engine = make_engine(backend="reference", poll_steps=100)
    with engine.open("ab") as root:
        kids = root.fork(4)
        engine.decode(kids, until="</S>", sampling=free_sampling(90, seed=1))
        for kid in kids:
            branch = kid.session.question.branches[kid.key]
            assert engine.kv_cache.pool.length(branch.seq) == len(kid.token_ids) - 1
        engine.kv_cache.pool.check()


def test_tags_that_come_later_rebuild_the_steps(make_engine, free_sampling):
    engine, plain = make_engine(backend="reference", poll_steps=4), make_engine()
    texts = []
    for each in (plain, engine):
        with each.open("ab") as root:
            first, second = root.fork(2)
            each.decode([first], until="</S>", sampling=free_sampling(20, seed=8))
            each.decode([second], until="g", sampling=free_sampling(20, seed=9))
            texts.append([(kid.text, kid.finish_reason) for kid in (first, second)])
    assert texts[0] == texts[1]


def test_cancelling_while_ahead(make_engine, image, free_sampling):
    """make_engine's fixture then proves that nothing is held."""
    engine = make_engine(backend="reference", poll_steps=16)
    started = threading.Event()
    handle = engine.submit("ab", image, search=beam(4), sampling=free_sampling(60, seed=6))
    for event in handle.events():
        if type(event).__name__ == "TokenText":
            started.set()
            handle.cancel()
            break
    assert started.is_set()
    with pytest.raises(CancelledError):
        handle.result(timeout=60)
    assert engine.answer("ab", image, search=beam(2), sampling=free_sampling(20, seed=6)).stages


def test_warming_up_touches_no_block(make_engine, image):
    engine = make_engine(backend="reference", poll_steps=4)
    engine.answer("ab", image, search=beam(2), sampling=GREEDY)
    runner = engine._loop._runner
    caches = [cache for layer in engine.kv_cache.layers for cache in layer]
    for cache in caches:
        cache.fill_(torch.nan)
    (step, run), *_ = runner._graphs.values()
    with torch.inference_mode():
        step.load([])
        run()
        out = step.outputs(1)
    assert all(bool(cache.isnan().all()) for cache in caches)
    assert bool(out.logprobs.isfinite().all())  # padding reads no block either


def test_poll_steps_must_be_positive(make_engine):
    with pytest.raises(InvalidInputError, match="poll_steps"):
        make_engine(poll_steps=0)


def test_buckets_are_powers_of_two():
    assert [round_up(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 64)] == [0, 1, 2, 4, 4, 8, 8, 16, 64]


def test_the_step_never_looks_at_a_value(make_engine, mllama):
    """On the meta device every look at a value is an error: what a graph could not capture."""
    engine = make_engine(backend="reference", poll_steps=4)
    runner = engine._loop._runner
    source = {name: tensor.to("meta") for name, tensor in mllama.hf.state_dict().items()}
    model = build_model(
        engine.spec, source, device="meta", dtype=torch.float32, backend_ops=resolve("reference")
    )
    kv_cache, image_slots, bank = engine.kv_cache, engine.image_slots, runner.bank

    class OnMeta:
        """A cache or bank whose tensors are on the meta device."""

        def __init__(self, of) -> None:
            self.block_size = 16
            self.layers = [
                tuple(torch.empty_like(x, device="meta") for x in pair)
                for pair in getattr(of, "layers", [])
            ]
            if hasattr(of, "next_state"):
                self.next_state = torch.empty_like(of.next_state, device="meta")
                self.accept_tag = torch.empty_like(of.accept_tag, device="meta")

    shape = StepShape(num_rows=8, max_group_rows=4, trunk_width=4, tail_width=2, has_image=True)
    step = StaticStep(
        shape,
        4,
        model,
        OnMeta(kv_cache),
        OnMeta(image_slots),
        OnMeta(bank),
        resolve("reference"),
        torch.tensor(engine.spec.eos_ids, device="meta"),
    )
    with torch.inference_mode():
        step.run()
        step.run()
    assert step._out.token_ids.shape == (4, 8)


@pytest.mark.gpu
def test_captured_steps_are_the_plain_runners(mllama, image, free_sampling):
    options = {"search": beam(4), "sampling": free_sampling(40, seed=11)}
    common = {"kv_cache_bytes": 8 << 20, "dtype": "float32"}
    with Engine(mllama.folder, device="cpu", **common) as plain:
        expected = plain.answer("ab?", image, **options)
    for backend in ("auto", "reference"):
        with Engine(mllama.folder, device="cuda", backend=backend, **common) as engine:
            assert_same(engine.answer("ab?", image, **options), expected)
