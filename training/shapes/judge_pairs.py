"""Judge examples: two candidate texts for a stage, one right and one wrong in a small way.

The user turn is the engine's own (engine/judge/prompts.py) with the shapes plan's short words, and
the reply is the plan's verdict sentence. Which of the two comes first is drawn, so both orders occur.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stagebeam.engine.judge.prompts import gate_text, pair_text
from stagebeam.engine.stages import JudgePrompts, Stage, StagePlan
from stagebeam.training.shapes.annotate import StagedAnswer
from stagebeam.training.shapes.mistakes import (
    wrong_answer,
    wrong_caption,
    wrong_conclusion,
    wrong_reasoning,
    wrong_summary,
)
from stagebeam.training.shapes.questions import Question
from stagebeam.training.shapes.scene import Scene

SHAPES_PLAN = StagePlan(
    stages=(
        Stage(name="summary", tag="SUMMARY", criterion="plans", max_tokens=32),
        Stage(name="caption", tag="CAPTION", criterion="describes", max_tokens=64),
        Stage(
            name="reasoning",
            tag="REASONING",
            criterion="reasons",
            hints=("caption",),
            has_gate=True,
            max_tokens=128,
        ),
        Stage(
            name="conclusion",
            tag="CONCLUSION",
            criterion="concludes",
            hints=("caption", "reasoning"),
            max_tokens=24,
        ),
    ),
    prompts=JudgePrompts(
        pair=(
            "Which response {criterion} better?\nQuestion: {question}\n{hint}"
            "Response 1: {first}\nResponse 2: {second}"
        ),
        hint="Known {name}: {text}\n",
        verdict="I choose response {choice}.",
        gate="{hint}Reasoning: {reasoning}\nIs the reasoning correct?",
        gate_verdict="The reasoning is {choice}.",
        gate_words=("correct", "incorrect"),
        answer_criterion="answers",
        sentence_criterion="continues",
    ),
)
TARGETS = ("summary", "caption", "reasoning", "conclusion", "answer", "sentence")


@dataclass(frozen=True, slots=True)
class JudgePair:
    """target: a stage's name, "answer" or "sentence"; is_first: whether the right text comes first."""

    target: str
    question: str
    hints: tuple[tuple[str, str], ...]
    right: str
    wrong: str
    is_first: bool

    @property
    def texts(self) -> tuple[str, str]:
        return (self.right, self.wrong) if self.is_first else (self.wrong, self.right)

    def turned(self, is_first: bool) -> JudgePair:
        """The same pair with the right text first, or second."""
        return replace(self, is_first=is_first)

    def user_text(self, plan: StagePlan = SHAPES_PLAN) -> str:
        """The user turn, exactly as the engine asks."""
        criterion = criterion_of(plan, self.target)
        return pair_text(plan.prompts, criterion, self.question, self.hints, *self.texts)

    def reply_text(self, plan: StagePlan = SHAPES_PLAN) -> str:
        return plan.prompts.verdict.format(choice=1 if self.is_first else 2)


def criterion_of(plan: StagePlan, target: str) -> str:
    if target == "answer":
        return plan.prompts.answer_criterion
    if target == "sentence":
        return plan.prompts.sentence_criterion
    return next(stage.criterion for stage in plan.stages if stage.name == target)


def stage_hints(target: str, answer: StagedAnswer) -> tuple[tuple[str, str], ...]:
    names = next((stage.hints for stage in SHAPES_PLAN.stages if stage.name == target), ())
    return tuple((name, getattr(answer, name)) for name in names)


def make_pair(
    rng: random.Random, question: Question, scene: Scene, right: StagedAnswer, target: str
) -> JudgePair:
    """A single-error pair for `target`, the order drawn from `rng`."""
    hints = stage_hints(target, right)
    if target in ("answer", "sentence"):
        good = right.text()
        bad = wrong_answer(rng, question, scene, right).text()
        if target == "sentence":
            so_far, good, bad = first_difference(good, bad)
            hints = (("answer so far", so_far),) if so_far else ()
    elif target == "summary":
        good, bad = right.summary, wrong_summary(rng, question)
    elif target == "caption":
        good, bad = right.caption, wrong_caption(rng, scene)
    elif target == "reasoning":
        good, bad = right.reasoning, wrong_reasoning(rng, question, scene)
    elif target == "conclusion":
        good, bad = right.conclusion, wrong_conclusion(rng, right.conclusion)
    else:
        raise ValueError(f"target must be one of {TARGETS}, got {target!r}")
    return JudgePair(target, question.text, hints, good, bad, rng.random() < 0.5)


def first_difference(good: str, bad: str) -> tuple[str, str, str]:
    """The text before the first sentence that differs, and that sentence of each."""
    goods, bads = sentences(good), sentences(bad)
    number = next(i for i, (a, b) in enumerate(zip(goods, bads, strict=False)) if a != b)
    return "".join(goods[:number]), goods[number].strip(), bads[number].strip()


def sentences(text: str) -> Sequence[str]:
    """Pieces that end in a full stop; what is left at the end is the last piece."""
    pieces = text.split(".")
    return [f"{piece}." for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])


@dataclass(frozen=True, slots=True)
class GateExample:
    """A text-only check of one reasoning against its caption."""

    hints: tuple[tuple[str, str], ...]
    reasoning: str
    is_correct: bool

    def user_text(self, plan: StagePlan = SHAPES_PLAN) -> str:
        return gate_text(plan.prompts, self.hints, self.reasoning)

    def reply_text(self, plan: StagePlan = SHAPES_PLAN) -> str:
        word = plan.prompts.gate_words[0 if self.is_correct else 1]
        return plan.prompts.gate_verdict.format(choice=word)


def make_gate(
    rng: random.Random, question: Question, scene: Scene, right: StagedAnswer
) -> GateExample:
    is_correct = rng.random() < 0.5
    reasoning = right.reasoning if is_correct else wrong_reasoning(rng, question, scene)
    return GateExample((("caption", right.caption),), reasoning, is_correct)
