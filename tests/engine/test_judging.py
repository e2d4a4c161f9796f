"""Verdicts from shared, batched prefills equal those of HF transformers on each whole prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from transformers import MllamaForConditionalGeneration

from stagebeam import Engine, JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT
from stagebeam.engine.search.requests import Judge, Pair

FREE = SamplingParams(temperature=2.1, top_p=1.0, top_k=0, max_tokens=100, seed=11)


def hf_log_odds(
    model: MllamaForConditionalGeneration, engine: Engine, image: Image.Image, prompt: object
) -> float:
    """HF's log-odds of a judge prompt's two choices, the prompt computed whole and alone."""
    prepared = engine.processor.preprocess(image)
    ids = torch.tensor([prompt.token_ids])  # type: ignore[attr-defined]
    mask = torch.zeros((1, ids.shape[1], 1, len(prepared.aspect_ratio_mask)), dtype=torch.int64)
    mask[0, prompt.image_position :, 0, : prepared.num_tiles] = 1  # type: ignore[attr-defined]
    with torch.inference_mode():
        logits = model(
            input_ids=ids,
            pixel_values=prepared.pixel_values[None, None],
            aspect_ratio_ids=torch.tensor([[prepared.aspect_ratio_id]]),
            aspect_ratio_mask=prepared.aspect_ratio_mask[None, None],
            cross_attention_mask=mask,
        ).logits[0, -1]
    first, second = prompt.choice_ids  # type: ignore[attr-defined]
    return float(logits[first] - logits[second])


@pytest.fixture
def exact() -> Iterator[Engine]:
    with Engine(dtype="float32", kv_cache_bytes=32 << 20) as engine:
        yield engine


def test_verdicts_equal_hf(exact: Engine, scene: Image.Image, question: str) -> None:
    model = MllamaForConditionalGeneration.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32)
    with exact.open(question, scene) as root:
        kids = root.fork(4)
        exact.decode(kids, until="</SUMMARY>", sampling=FREE)
        pairs = [(kids[i], kids[j]) for i in range(4) for j in range(i + 1, 4)]
        probabilities = exact.score(pairs, criterion="plans")
        reversed_ = exact.score([(b, a) for a, b in pairs], criterion="plans")
        request = Judge(
            pairs=tuple(Pair(first=a.inner, second=b.inner) for a, b in pairs), criterion="plans"
        )
        prompts = root.session.question.asker.write(request)
    assert len(prompts) == 12
    for i, probability in enumerate(probabilities):
        ab, ba = (hf_log_odds(model, exact, scene, p) for p in prompts[2 * i : 2 * i + 2])
        log_odds = math.log(probability / (1 - probability))
        assert log_odds == pytest.approx((ab - ba) / 2, abs=1e-4)
        assert probability + reversed_[i] == pytest.approx(1, abs=1e-6)


def test_shared_beginnings_are_prefilled_once(
    idle: Engine, scene: Image.Image, question: str
) -> None:
    with idle.open(question, scene) as root:
        kids = root.fork(4)
        idle.decode(kids, until="</SUMMARY>", sampling=FREE)
        pairs = [(kids[i], kids[j]) for i in range(4) for j in range(i + 1, 4)]
        idle.score(pairs, criterion="plans")
        request = Judge(
            pairs=tuple(Pair(first=a.inner, second=b.inner) for a, b in pairs), criterion="plans"
        )
        total = sum(len(p.token_ids) for p in root.session.question.asker.write(request))
        assert 0 < root.usage.judge_prompt_tokens < 0.8 * total
        assert root.usage.judge_rounds == 1
        assert root.usage.judge_calls == 12


@pytest.mark.parametrize("schedule", ["all", "played"])
def test_generated_verdicts_and_gates_are_counted(
    idle: Engine, scene: Image.Image, question: str, schedule: str
) -> None:
    answer = idle.answer(
        question,
        scene,
        search=SearchParams(beam_size=3),
        sampling=FREE,
        judge=JudgeParams(mode="generate", schedule=schedule),
    )
    judged = [m for stage in answer.stages for m in stage.matches if m.kind == "judged"]
    assert judged
    assert all(match.verdict_text for match in judged)
    assert answer.usage.judge_completion_tokens > 0
    assert answer.usage.malformed_verdicts == sum(m.is_malformed_verdict for m in judged)


def test_a_gate_by_logits(idle: Engine, scene: Image.Image, question: str) -> None:
    answer = idle.answer(
        question,
        scene,
        search=SearchParams(beam_size=4),
        sampling=FREE,
        judge=JudgeParams(gate=True),
    )
    assert answer.usage.judge_rounds >= 1
    assert answer.usage.judge_completion_tokens == 0
