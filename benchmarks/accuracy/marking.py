"""Whether an answer is right, and whether it is well formed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stagebeam.engine.stages import StagePlan


def is_right(conclusion: str, expected: str) -> bool:
    """Equal but for letter case, white space and a full stop at the end."""
    return plain(conclusion) == plain(expected) != ""


def plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def is_valid_format(text: str, plan: StagePlan) -> bool:
    """Every stage of the plan once, in order, opened and closed, and nothing but white space around."""
    rest = text
    for stage in plan.stages:
        match = re.match(
            rf"\s*{re.escape(stage.open_tag)}(.*?){re.escape(stage.close_tag)}", rest, re.DOTALL
        )
        if match is None or _has_tag(match[1], plan):
            return False
        rest = rest[match.end() :]
    return not rest.strip()


def _has_tag(text: str, plan: StagePlan) -> bool:
    tags: Sequence[str] = [tag for s in plan.stages for tag in (s.open_tag, s.close_tag)]
    return any(tag in text for tag in tags)
