"""The HF baselines on the bundled checkpoint: real searches, the same work as the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.baselines.outcome import Outcome
from stagebeam.benchmarks.baselines.published import PUBLISHED_JUDGE, PublishedHF
from stagebeam.benchmarks.baselines.strong import StrongHF
from stagebeam.benchmarks.baselines.task import Lengths, Task, forced_task, free_task
from stagebeam.benchmarks.speed.ours import Ours
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.engine import Engine
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams, Strategy
from stagebeam.engine.stages import StagePlan

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"
SHORT = Lengths(prompt=20, stages=(6, 9, 12, 4), judge_head=30, judge_tail=10, verdict=5)
SAMPLED = SamplingParams(temperature=0.8, top_p=1.0, top_k=0, max_tokens=150, seed=3)
GREEDY = replace(SAMPLED, temperature=0.0)
SHORT_VERDICTS = replace(PUBLISHED_JUDGE, sampling=SamplingParams(max_tokens=12))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> HFModel:
    return HFModel(BUNDLED_CHECKPOINT)


@pytest.fixture(scope="module")
def plan(model: HFModel) -> StagePlan:
    return StagePlan.from_dict(model.processor.stage_plan)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(kv_cache_bytes=64 << 20, backend="reference") as loaded:
        yield loaded
        assert loaded.stats()["num_used"] == 0


@pytest.fixture(scope="module")
def free(model: HFModel, plan: StagePlan) -> Callable[..., Task]:
    def make(strategy: Strategy, beam_size: int, sampling: SamplingParams, judge=JudgeParams()):  # noqa: B008
        return free_task(
            model.processor,
            (EXAMPLES / "scene.txt").read_text(encoding="utf-8").strip(),
            EXAMPLES / "scene.png",
            plan=plan,
            search=SearchParams(strategy=strategy, beam_size=beam_size),
            sampling=sampling,
            judge=judge,
            add_bos=model.processor.default_add_bos,
        )

    return make


@pytest.fixture(scope="module")
def short(model: HFModel, plan: StagePlan) -> Callable[..., Task]:
    def make(judge: JudgeParams, beam_size: int = 2, strategy: Strategy = "stage_beam") -> Task:
        return forced_task(
            model.processor,
            EXAMPLES / "scene.png",
            lengths=SHORT,
            plan=plan,
            search=SearchParams(strategy=strategy, beam_size=beam_size),
            sampling=SAMPLED,
            judge=judge,
            image_id=model.spec.image_token_id,
        )

    return make


@pytest.mark.parametrize("strategy", ["stage_beam", "best_of_n", "sentence_beam"])
def test_greedy_answers_equal_the_engines(strategy, model, engine, free) -> None:
    """One float32 model, one prompt, argmax: every contender must say the same."""
    task = free(strategy, 1, GREEDY)
    ours = Ours(engine).answer(task)
    published = PublishedHF(model).answer(replace(task, judge=PUBLISHED_JUDGE))
    strong = StrongHF(model).answer(task)
    assert published.result.token_ids == strong.result.token_ids == ours.result.token_ids
    assert published.result.text == strong.result.text == ours.result.text
    assert ours.is_well_formed
    assert published.is_well_formed
    assert strong.is_well_formed


@pytest.mark.parametrize("strategy", ["stage_beam", "best_of_n", "sentence_beam"])
def test_sampled_searches_are_well_formed(strategy, model, plan, free) -> None:
    for contender, judge in ((PublishedHF, SHORT_VERDICTS), (StrongHF, JudgeParams())):
        outcome = contender(model).answer(free(strategy, 3, SAMPLED, judge))
        assert outcome.is_well_formed
        for stage in outcome.result.stages:
            assert len(stage.candidates) == 3
            assert len(stage.matches) == 2
            assert stage.matches[-1].winner == stage.winner
            assert len({match.winner for match in stage.matches} | {stage.winner}) <= 2
        texts = [stage.candidates[stage.winner].text for stage in outcome.result.stages]
        assert "".join(texts) == outcome.result.text
        assert plan.conclusion(outcome.result.text)
    names = [stage.name for stage in outcome.result.stages]
    if strategy == "stage_beam":
        assert names == [stage.name for stage in plan.stages]


def test_published_costs_what_the_paper_says(model, short) -> None:
    """Calls a question: N=2 -> 14, N=4 -> 34; every one with an image encodes it."""
    for beam_size, calls in ((2, 14), (4, 34)):
        usage = PublishedHF(model).answer(short(PUBLISHED_JUDGE, beam_size)).usage
        num_gates = 2 * (beam_size - 1)
        assert usage.prefill_passes == calls
        assert usage.image_encodes == calls - num_gates
        assert usage.judge_completion_tokens == SHORT.verdict * (4 + 2) * (beam_size - 1)


def test_strong_judges_as_the_engine_does(model, engine, plan, free) -> None:
    """The verdict of the same two texts, both orders, with hints and the image."""
    outcome = StrongHF(model).answer(free("stage_beam", 4, replace(SAMPLED, temperature=1.8)))
    texts = {stage.name: stage.text for stage in outcome.result.stages}
    judged = 0
    for stage, spec in zip(outcome.result.stages, plan.stages):
        for match in stage.matches:
            if match.kind != "judged":
                continue
            judged += 1
            pair = (stage.candidates[match.first].inner, stage.candidates[match.second].inner)
            verdict = engine.judge(
                (EXAMPLES / "scene.txt").read_text(encoding="utf-8").strip(),
                EXAMPLES / "scene.png",
                [pair],
                spec.criterion,
                [(name, texts[name]) for name in spec.hints],
            )[0]
            probability = 1 / (1 + pow(2.718281828459045, -verdict.log_odds))
            assert probability == pytest.approx(match.probability, abs=1e-3)
    assert judged


@pytest.mark.parametrize("strategy", ["stage_beam", "best_of_n", "sentence_beam"])
def test_forced_lengths_are_the_same_for_all(strategy, model, engine, short) -> None:
    by_logits = short(JudgeParams(), strategy=strategy)
    outcomes = [
        PublishedHF(model).answer(short(PUBLISHED_JUDGE, strategy=strategy)),
        StrongHF(model).answer(by_logits),
        Ours(engine).answer(by_logits),
    ]

    def shape(outcome: Outcome) -> list:
        return [
            (stage.name, len(stage.matches), [len(c.token_ids) for c in stage.candidates])
            for stage in outcome.result.stages
        ]

    assert shape(outcomes[0]) == shape(outcomes[1]) == shape(outcomes[2])
    if strategy == "stage_beam":
        assert [s.candidates[0].token_ids for s in outcomes[0].result.stages]
        assert [lengths[2][0] for lengths in shape(outcomes[2])] == list(SHORT.stages)
    _, strong, ours = (outcome.usage for outcome in outcomes)
    assert strong.judge_calls == ours.judge_calls
    assert strong.completion_tokens == ours.completion_tokens
    for outcome in outcomes:
        assert outcome.peak_kv_bytes > 0
        assert outcome.step_seconds
        assert outcome.timings.time_to_first_token
        assert outcome.usage.malformed_candidates == (len(outcome.result.stages) * 2) * (
            outcome is outcomes[2]  # the engine does not know that these lengths are meant
        )


def test_generated_verdicts_run_here_too(engine, short) -> None:
    usage = Ours(engine).answer(short(PUBLISHED_JUDGE)).usage
    # Two gates and a match a stage; a match that a gate has decided is not asked.
    assert usage.judge_calls in (5, 6)
    assert usage.judge_completion_tokens == SHORT.verdict * usage.judge_calls


def test_a_recorder_leaves_the_engine_as_it_was(engine, short) -> None:
    loop = engine._loop
    recorded = Ours(engine).answer_together([short(JudgeParams()), short(JudgeParams())])
    for owner, name in ((loop._decoder, "step"), (loop._runner, "encode_image")):
        assert name not in vars(owner)
    kinds = {span.kind for span in recorded.spans}
    assert {"decode", "prefill", "judge"} <= kinds
    rows = [span.num_tokens for span in recorded.spans if span.kind == "decode"]
    assert sum(rows) == 2 * 2 * sum(SHORT.stages)
    assert max(rows) == 4
    assert all(0 < span.forward_seconds <= span.seconds for span in recorded.spans)
    assert recorded.decode_blocks > 0
    assert recorded.host_seconds > 0


def test_a_sampled_published_search_counts_what_the_whole_one_does(model, short) -> None:
    """Calls alike are made once and counted as often as they are made; lengths make them alike."""
    task = short(PUBLISHED_JUDGE, beam_size=3)
    whole = PublishedHF(model).answer(task)
    sampled = PublishedHF(model, is_sampled=True).answer(task)
    # What a verdict says depends on the candidates, not on their lengths.
    whole_usage, sampled_usage = (
        replace(answer.usage, malformed_verdicts=0) for answer in (whole, sampled)
    )
    assert whole_usage == sampled_usage
    assert len(whole.step_seconds) == len(sampled.step_seconds)
    assert whole.repeated_seconds == 0
    t = sampled.timings
    phases = t.image_encode + t.prefill + t.decode + t.judge
    assert 0 < sampled.repeated_seconds < t.total
    assert phases == pytest.approx(t.total, rel=0.05)
