"""The native step through the engine: the reference's tokens in float32, the same bits in any company
in every format, and what an engine must do beside."""

from __future__ import annotations

import pytest
import torch
from probe import choices, held

from stagebeam import Engine
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.step.native_runner import NativeRunner, default_poll_steps
from stagebeam.engine.step.runner import ModelRunner
from stagebeam.kernels.native_arrays import has_heads_apart

FORMATS = ["float32", "bfloat16", "int8", "int4"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)


def bits(answer) -> list[object]:
    return [
        [(c.token_ids, c.cumulative_logprob, c.finish_reason) for c in stage.candidates]
        for stage in answer.stages
    ]


def test_auto_is_bfloat16_in_the_native_program(bundled) -> None:
    assert (bundled.dtype, bundled.kv_cache_dtype) == ("bfloat16", "bfloat16")
    assert isinstance(bundled._loop._runner, NativeRunner)
    assert bundled.kv_cache.layers[0][0].dtype == torch.bfloat16
    for cache in (bundled.kv_cache, bundled.image_slots):
        assert all(has_heads_apart(x) for layer in cache.layers for x in layer)
    plan, spec = bundled.memory, bundled.spec
    assert plan.weight_bytes == bundled.native_model.weight_bytes < 1.3 * spec.weight_bytes(2) + 4e6


def test_reference_is_pytorch(make_engine) -> None:
    engine = make_engine(backend="reference")
    assert type(engine._loop._runner) is ModelRunner
    assert engine.native_model is None


@pytest.mark.parametrize("strategy", ["stage_beam", "best_of_n", "sentence_beam"])
@pytest.mark.parametrize("mode", ["logits", "generate"])
def test_float32_searches_equal_the_references(
    make_engine, wide_image, free_sampling, strategy, mode
) -> None:
    options = {
        "search": SearchParams(strategy=strategy, beam_size=3),
        "sampling": free_sampling(40, seed=5),
        "judge": JudgeParams(mode=mode, gate=mode == "generate", sampling=free_sampling(6)),
    }
    expected = make_engine(backend="reference").answer("how many?", wide_image, **options)
    got = make_engine(num_threads=2).answer("how many?", wide_image, **options)
    assert choices(got) == choices(expected)
    for stage, other in zip(got.stages, expected.stages, strict=True):
        for one, two in zip(stage.candidates, other.candidates, strict=True):
            assert one.cumulative_logprob == pytest.approx(two.cumulative_logprob, abs=1e-3)


def test_float32_greedy_of_the_bundled_checkpoint_equals_the_references(scene, question) -> None:
    answers = []
    for backend in ("reference", "native"):
        with Engine(backend=backend, dtype="float32", kv_cache_bytes=16 << 20) as engine:
            search = SearchParams(strategy="greedy")
            answers.append(engine.answer(question, scene, search=search, sampling=GREEDY))
    assert choices(answers[0]) == choices(answers[1])


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_a_row_is_the_same_alone_and_among_32(
    make_engine, image, wide_image, free_sampling, dtype, kv_cache_dtype
) -> None:
    """To the bit, its log-probability too, with and without run-ahead, on one thread and on two."""
    pictures = [image, wide_image, None]
    questions = [
        {
            "question": f"{'why ' * (i % 5)}{i}?",
            "image": pictures[i % 3],
            "search": SearchParams(strategy="best_of_n", beam_size=1 + i % 2),
            "sampling": free_sampling(max_tokens=8 + i % 7, seed=i),
        }
        for i in range(22)  # 33 rows
    ]
    options = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype}

    def opened(**more) -> Engine:
        return Engine(make_engine().path, kv_cache_bytes=4 << 20, **options, **more)

    with opened(num_threads=2) as crowd, opened(poll_steps=1) as alone:
        with held(crowd):
            handles = [crowd.submit(**question) for question in questions]
        together = [handle.result(120) for handle in handles]
        for question, answer in list(zip(questions, together))[::3]:
            assert bits(alone.answer(**question)) == bits(answer)


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16", "int8"])
def test_the_memory_plan_counts_the_caches_bytes(make_engine, kv_cache_dtype) -> None:
    with Engine(
        make_engine().path, kv_cache_dtype=kv_cache_dtype, kv_cache_bytes=1 << 20
    ) as engine:
        for layers, total in (
            (engine.kv_cache.layers, engine.memory.kv_cache_bytes),
            (engine.image_slots.layers, engine.memory.image_bytes),
        ):
            assert sum(x.numel() * x.element_size() for layer in layers for x in layer) == total


def test_an_int8_cache_is_near_the_exact_one(make_engine, image, free_sampling) -> None:
    """Log-probabilities of the same first tokens; forks copy the scales too."""
    totals = []
    for kv_cache_dtype in ("float32", "int8"):
        with Engine(
            make_engine().path,
            dtype="float32",
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_bytes=1 << 20,
        ) as engine:
            answer = engine.answer(
                "how many? " * 9,
                image,
                search=SearchParams(strategy="best_of_n", beam_size=4),
                sampling=free_sampling(max_tokens=4, seed=3, ignore_eos=True),
            )
            totals.append([c.cumulative_logprob for c in answer.stages[0].candidates])
            tokens = [c.token_ids for c in answer.stages[0].candidates]
            totals[-1] = list(zip(tokens, totals[-1]))
    same = [(a, b) for (i, a), (j, b) in zip(*totals) if i == j]
    assert len(same) >= 2
    for exact, rounded in same:
        assert rounded == pytest.approx(exact, abs=0.1)
        assert rounded != exact


def test_poll_steps_follow_the_models_size() -> None:
    assert default_poll_steps(1 << 20) == 16
    assert default_poll_steps(8 << 20) == 8
    assert default_poll_steps(1 << 30) == 1
