"""Judge rounds on the shared cache equal each prompt computed whole and alone by HF.

The prompts are written here a second time, from the plan's words and the chat template.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
from probe import Probe, assert_nothing_held, choices, held
from tiny_checkpoint import PLAN

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams, SearchParams
from stagebeam.engine.search.requests import Gate

TEXTS = [
    "a cat",
    "a dog, or two",
    "a dog, or three dogs that sit on a very long bench",
    "",
    "🙂 {x}",
]
HINTS = (("caption", "two dogs"), ("reasoning", "they bark {loudly}"))


def log_odds(checkpoint, engine, picture, text: str, words: tuple[str, str]) -> float:
    """HF's log-odds of the two words after the rendered user turn."""
    processor = engine.processor
    content = [{"type": "text", "text": text}]
    if picture is not None:
        content.insert(0, {"type": "image"})
    prompt = processor.render([{"role": "user", "content": content}])
    first, second = (processor.encode(prompt + f"{word}.") for word in words)
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    assert len(differing) == 1
    place = differing[0]
    image = processor.preprocess(picture) if picture is not None else None
    logits = checkpoint.logits(tuple(first[:place]), image)[-1]
    return float(logits[first[place]] - logits[second[place]])


def pair_log_odds(checkpoint, engine, picture, question, first, second) -> float:
    hint = "".join(f"{name}={text} " for name, text in HINTS)
    text = f"answers {question} {hint}[{first}] [{second}]"
    return log_odds(checkpoint, engine, picture, text, ("1", "2"))


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("num_blocks", [512, 12])
def test_log_odds_equal_hf(make_engine, mllama, image, has_image, num_blocks) -> None:
    """A small pool takes them in waves; the verdicts are the same."""
    engine = make_engine(num_blocks=num_blocks)
    probe = Probe(engine, keeps_rows=False)
    picture, question = (image, "how many dogs?") if has_image else (None, "how many?")
    pairs = list(combinations(TEXTS, 2))
    verdicts = engine.judge(question, picture, pairs, "answers", HINTS)
    for (first, second), verdict in zip(pairs, verdicts, strict=True):
        ab = pair_log_odds(mllama, engine, picture, question, first, second)
        ba = pair_log_odds(mllama, engine, picture, question, second, first)
        assert verdict.log_odds == pytest.approx((ab - ba) / 2, abs=1e-4)
        assert verdict.is_disagreement == ((ab > 0) == (ba > 0))
        assert not verdict.is_malformed
    assert max(abs(verdict.log_odds) for verdict in verdicts) > 0.01
    assert (probe.num_prefills > 1) == (num_blocks == 12)
    assert_nothing_held(engine)


def test_both_orders_are_antisymmetric(engine, image) -> None:
    pairs = list(combinations(TEXTS, 2))
    there = engine.judge("q?", image, pairs, "answers")
    back = engine.judge("q?", image, [(b, a) for a, b in pairs], "answers")
    for one, other in zip(there, back):
        assert one.log_odds == pytest.approx(-other.log_odds, abs=1e-5)
        assert one.is_disagreement == other.is_disagreement


def test_one_order(make_engine, mllama, image) -> None:
    engine = make_engine()
    (verdict,) = engine.judge(
        "q?", image, [("a", "b")], "answers", HINTS, judge=JudgeParams(both_orders=False)
    )
    expected = pair_log_odds(mllama, engine, image, "q?", "a", "b")
    assert verdict.log_odds == pytest.approx(expected, abs=1e-4)


def test_text_only_gates_beside_image_rows(make_engine, mllama, image, free_sampling) -> None:
    """Gates see no image: their rows share passes with another question's, who has one."""
    engine = make_engine()
    probe = Probe(engine, keeps_rows=False)
    mixed = []
    prefill = probe.runner.prefill

    def watched(chunks):
        mixed.append({chunk.image is None for chunk in chunks} == {True, False})
        return prefill(chunks)

    probe.runner.prefill = watched
    gates: list[int | None] = []
    opened = engine._loop._judging._open

    def watched_open(question, request):
        round_ = opened(question, request)
        if isinstance(request, Gate):
            gates.extend(prompt.image_position for prompt in round_.prompts)
        return round_

    engine._loop._judging._open = watched_open
    with held(engine):
        handles = [
            engine.submit(
                question,
                image,
                search=SearchParams(beam_size=4),
                sampling=free_sampling(40, seed=seed),
                judge=JudgeParams(gate=has_gate, schedule="all"),
            )
            for question, seed in (("how many?", 2), ("how many?", 4), ("why?", 5), ("why?", 6))
            for has_gate in (True, False)  # in step up to the gate: one asks it, one its judge
        ]
    answers = [handle.result(60) for handle in handles][::2]
    assert gates
    assert set(gates) == {None}
    assert any(mixed)
    num_gated = 0
    for answer in answers:
        stages = {stage.name: stage for stage in answer.stages}
        reasonings, caption = stages["reasoning"], stages["caption"].text
        passes = [
            log_odds(mllama, engine, None, f"caption={caption} {c.inner}?", ("y", "n")) > 0
            for c in reasonings.candidates
        ]
        for match in reasonings.matches:
            if match.kind == "gate":
                num_gated += 1
                assert not (passes[match.first] and passes[match.second])
            elif match.kind == "judged":
                assert passes[match.first]
                assert passes[match.second]
    assert num_gated > 0


def test_generated_verdicts_are_counted(make_engine, image, free_sampling) -> None:
    engine = make_engine()
    answer = engine.answer(
        "how many?",
        image,
        search=SearchParams(beam_size=4),
        sampling=free_sampling(40, seed=2),
        judge=JudgeParams(mode="generate", sampling=free_sampling(max_tokens=8), schedule="played"),
    )
    judged = [m for stage in answer.stages for m in stage.matches if m.kind == "judged"]
    texts = [match.verdict_text or "" for match in judged]
    assert len(judged) >= 6
    for match, text in zip(judged, texts):
        assert match.probability in (0.0, 1.0)
        assert match.winner == (match.first if "1" in text else match.second)
        assert match.is_malformed_verdict == ("1" not in text and "2" not in text)
    assert any("1" in text for text in texts)
    usage = answer.usage
    assert usage.malformed_verdicts == sum(match.is_malformed_verdict for match in judged)
    assert 0 < usage.malformed_verdicts < len(judged)
    assert usage.judge_calls >= len(judged)
    assert len(judged) <= usage.judge_completion_tokens <= 8 * usage.judge_calls


def test_waves_of_generated_verdicts(make_engine, image, free_sampling) -> None:
    """Neither blocks nor rows for all verdicts at once."""
    arguments = {
        "search": SearchParams(beam_size=4),
        "sampling": free_sampling(20, seed=2),
        "judge": JudgeParams(
            mode="generate", sampling=free_sampling(max_tokens=8), schedule="all", both_orders=True
        ),
    }
    wide = make_engine().answer("how many?", image, **arguments)
    narrow = make_engine(num_blocks=26, max_branches=4, max_model_len=256)
    probe = Probe(narrow, keeps_rows=False)
    assert choices(narrow.answer("how many?", image, **arguments)) == choices(wide)
    assert max(probe.decode_sizes) <= 4


def test_a_prompt_that_does_not_fit_the_context_is_malformed(make_engine, image) -> None:
    engine = make_engine(num_blocks=12)
    fits, too_long = engine.judge("q?", image, [("a", "b"), ("c" * 300, "d")], "answers")
    assert not fits.is_malformed
    assert too_long.is_malformed
    assert too_long.log_odds == 0
    assert "did not fit" in (too_long.text or "")


def test_session_scores(make_engine, mllama, image, free_sampling) -> None:
    engine = make_engine()
    with engine.open("how many?", image) as root:
        kids = root.fork(3)
        engine.decode(kids, until="</S>", sampling=free_sampling(seed=2))
        pairs = list(combinations(kids, 2))
        probabilities = engine.score(pairs, criterion="answers", hints=HINTS)
        for (a, b), probability in zip(pairs, probabilities, strict=True):
            ab = pair_log_odds(mllama, engine, image, "how many?", a.inner, b.inner)
            ba = pair_log_odds(mllama, engine, image, "how many?", b.inner, a.inner)
            expected = 1 / (1 + math.exp((ba - ab) / 2))
            assert probability == pytest.approx(expected, abs=1e-4)
        assert root.usage.judge_rounds == 1
        assert root.usage.judge_calls == 6


def test_words_that_logits_cannot_tell_apart(engine, image, free_sampling) -> None:
    """More than one differing token is refused before anything runs."""
    prompts = replace(PLAN.prompts, gate_words=("correct", "incorrect"))
    plan = replace(PLAN, prompts=prompts)
    with pytest.raises(InvalidInputError, match="one token"):
        engine.submit(
            "how many?", image, plan=plan, sampling=free_sampling(), judge=JudgeParams(gate=True)
        )
    engine.answer("how many?", image, plan=plan, sampling=free_sampling(8))  # asks no gate
    assert_nothing_held(engine)
