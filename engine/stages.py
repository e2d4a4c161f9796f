"""The stage plan: which stages an answer has, their tags, and how the judge is asked about them.

Plain data with a JSON form, so that users can replace any of it. The words are this project's; the
structure is the published one (LLaVA-CoT, arXiv 2411.10440): a role sentence with the stage's criterion, the
question, a hint, two numbered candidates, a reminder and a strict verdict line.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of an answer.

    name:      how answers, events and hints refer to it
    tag:       `<tag>` opens and `</tag>` closes it; plain text, no special token
    criterion: completes "the better response ..." in the judge's prompt
    hints:     names of earlier stages whose inner text the judge is given
    is_judged: False takes the first well-formed candidate
    has_gate:  the text-only correctness gate applies (where judging uses one)
    beam_size, sampling: overrides for this stage; None takes the question's
    max_tokens: the most tokens of this stage; without a sampling of its own a question may ask for
                fewer
    """

    name: str
    tag: str
    criterion: str
    hints: tuple[str, ...] = ()
    is_judged: bool = True
    has_gate: bool = False
    beam_size: int | None = None
    max_tokens: int | None = None
    sampling: SamplingParams | None = None

    def __post_init__(self) -> None:
        for name in ("name", "tag"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value and not set(value) & set("<>/ \n\t")):
                raise InvalidInputError(
                    f"stage {name} must be a word without <, >, / or white space, got {value!r}"
                )
        if not (isinstance(self.criterion, str) and (self.criterion or not self.is_judged)):
            raise InvalidInputError(f"stage {self.name!r} is judged and needs a criterion")
        for name in ("beam_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise InvalidInputError(
                    f"stage {self.name!r}: {name} must be None or an int >= 1, got {value!r}"
                )
        object.__setattr__(self, "hints", tuple(self.hints))

    @property
    def open_tag(self) -> str:
        return f"<{self.tag}>"

    @property
    def close_tag(self) -> str:
        return f"</{self.tag}>"

    def inner_text(self, text: str) -> str:
        """The stage's inner text: what stands between its tags, trimmed.

        Without an opening tag it starts at the beginning, without a closing one it runs to the end.
        """
        start = text.find(self.open_tag)
        begin = 0 if start < 0 else start + len(self.open_tag)
        end = text.find(self.close_tag, begin)
        return text[begin : len(text) if end < 0 else end].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompts:
    """The words of judging; `{...}` fields are filled per match.

    pair:      {criterion}, {question}, {hint}, {first}, {second}; the head must come before
               {first} and {second} so that matches can share it
    hint:      one hint's line, {name} and {text}; hints are joined without a separator
    verdict:   the sentence whose two forms are compared, {choice} is 1 or 2
    gate:      text-only, {hint} (the stages before) and {reasoning}
    gate_verdict: the sentence whose two forms are compared, {choice} is gate_words[0] or [1]
    gate_words: (passes, fails)
    answer_criterion, sentence_criterion: criteria for best-of-N and sentence-level search
    """

    pair: str
    hint: str
    verdict: str
    gate: str
    gate_verdict: str
    gate_words: tuple[str, str]
    answer_criterion: str
    sentence_criterion: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate_words", tuple(self.gate_words))
        needed = {
            "pair": {"criterion", "question", "hint", "first", "second"},
            "hint": {"name", "text"},
            "verdict": {"choice"},
            "gate": {"hint", "reasoning"},
            "gate_verdict": {"choice"},
        }
        for name, names in needed.items():
            text = getattr(self, name)
            try:
                parsed = list(string.Formatter().parse(text))
            except ValueError as error:  # an unbalanced brace
                raise InvalidInputError(
                    f"judge prompt {name!r} is not a format string: {error}; write {{{{ and }}}} for "
                    "literal braces"
                ) from error
            found = {field for _, field, _, _ in parsed if field is not None}
            if found != names:
                raise InvalidInputError(
                    f"judge prompt {name!r} must use the fields {sorted(names)}, got {sorted(found)}"
                )


LLAVA_COT_PROMPTS = JudgePrompts(
    pair=(
        "You compare two responses to a question about the image and pick the better one. "
        "The better response {criterion}.\n"
        "Question: {question}\n"
        "{hint}"
        "Response 1: {first}\n"
        "Response 2: {second}\n"
        "Remember that the better response {criterion}. Give your reason in one sentence and end "
        'with exactly "I choose response 1." or "I choose response 2."'
    ),
    hint="Known {name}: {text}\n",
    verdict="Weighing both, I choose response {choice}.",
    gate=(
        "Check a piece of reasoning for mistakes.\n"
        "{hint}"
        "Reasoning: {reasoning}\n"
        'Is the reasoning correct? Explain in one sentence and end with exactly "The reasoning is '
        'correct." or "The reasoning is incorrect."'
    ),
    gate_verdict="The reasoning is {choice}.",
    gate_words=("correct", "incorrect"),
    answer_criterion="answers the question better: it is more accurate, complete and to the point",
    sentence_criterion="is the better next sentence: accurate, useful and in line with what came before",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """The stages of an answer in order, and the judge's words about them."""

    stages: tuple[Stage, ...]
    prompts: JudgePrompts = LLAVA_COT_PROMPTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise InvalidInputError("a stage plan needs at least one stage, got none")
        for kind in ("name", "tag"):
            values = [getattr(stage, kind) for stage in self.stages]
            if len(set(values)) != len(values):
                raise InvalidInputError(f"stage {kind}s must differ, got {values}")
        seen: set[str] = set()
        for stage in self.stages:
            unknown = set(stage.hints) - seen
            if unknown:
                raise InvalidInputError(
                    f"stage {stage.name!r} hints at {sorted(unknown)}, expected earlier stages "
                    f"{sorted(seen)}"
                )
            seen.add(stage.name)

    @property
    def close_tags(self) -> tuple[str, ...]:
        return tuple(stage.close_tag for stage in self.stages)

    def conclusion(self, text: str) -> str:
        """The last stage's inner text, or "" where the text holds no such stage."""
        last = self.stages[-1]
        return last.inner_text(text) if last.open_tag in text else ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StagePlan:
        """Build a plan from its JSON form; `prompts` may be partial, the rest is LLaVA-CoT's."""
        _check_keys(data, cls, "stage plan")
        stages = []
        entries = data.get("stages", ())
        if not isinstance(entries, (list, tuple)):
            raise InvalidInputError(f"a stage plan's stages must be a list, got {entries!r}")
        for entry in entries:
            _check_keys(entry, Stage, "stage")
            missing = {"name", "tag"} - set(entry)
            if missing:
                raise InvalidInputError(f"a stage needs a name and a tag, got {dict(entry)!r}")
            sampling = entry.get("sampling")
            if isinstance(sampling, Mapping):
                _check_keys(sampling, SamplingParams, "stage sampling")
                entry = {**entry, "sampling": SamplingParams(**sampling)}
            stages.append(Stage(**{"criterion": "", **entry}))
        prompts = data.get("prompts") or {}
        _check_keys(prompts, JudgePrompts, "stage plan prompts")
        return cls(
            stages=tuple(stages), prompts=JudgePrompts(**{**asdict(LLAVA_COT_PROMPTS), **prompts})
        )

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> StagePlan:
        """Read a plan from a JSON file."""
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"cannot read the stage plan {os.fspath(path)}: {error}"
            ) from error
        return cls.from_dict(data)


def _check_keys(data: object, cls: type, what: str) -> None:
    if not isinstance(data, Mapping):
        raise InvalidInputError(f"a {what} must be a JSON object, got {type(data).__name__}")
    allowed = {field.name for field in fields(cls)}
    unknown = set(data) - allowed
    if unknown:
        raise InvalidInputError(
            f"{what}: unknown keys {sorted(unknown)}, expected some of {sorted(allowed)}"
        )


LLAVA_COT_PLAN = StagePlan(
    stages=(
        Stage(
            name="summary",
            tag="SUMMARY",
            criterion="outlines the main approach to the question instead of carrying out the analysis",
        ),
        Stage(
            name="caption",
            tag="CAPTION",
            criterion=(
                "describes what in the image matters for the question, thoroughly and accurately, "
                "with detail rather than commentary"
            ),
        ),
        Stage(
            name="reasoning",
            tag="REASONING",
            criterion=(
                "reasons correctly and explains its steps with fewer errors; compare the two, note "
                "where they differ, analyse the differences, then decide"
            ),
            hints=("caption",),
            has_gate=True,
        ),
        Stage(
            name="conclusion",
            tag="CONCLUSION",
            criterion="follows from the known reasoning and never refuses to answer",
            hints=("caption", "reasoning"),
        ),
    )
)
