"""The judge's texts: a stage plan's prompt words, filled in for one match or one gate.

Owns the filling only; the chat template and the image are the engine's. Each template is formatted
once and with values, so braces and tags in candidate texts stay as they are. Training builds its
judge examples with the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.engine.stages import JudgePrompts

Hints = Sequence[tuple[str, str]]


def pair_text(
    prompts: JudgePrompts, criterion: str, question: str, hints: Hints, first: str, second: str
) -> str:
    """The user turn that asks which of two candidates is better; hints are (name, text)."""
    return prompts.pair.format(
        criterion=criterion,
        question=question,
        hint=hint_text(prompts, hints),
        first=first,
        second=second,
    )


def gate_text(prompts: JudgePrompts, hints: Hints, reasoning: str) -> str:
    """The text-only user turn that asks whether a reasoning is correct; hints are (name, text)."""
    return prompts.gate.format(hint=hint_text(prompts, hints), reasoning=reasoning)


def hint_text(prompts: JudgePrompts, hints: Hints) -> str:
    """Every hint's line, joined without a separator; "" where there is none."""
    return "".join(prompts.hint.format(name=name, text=text) for name, text in hints)
