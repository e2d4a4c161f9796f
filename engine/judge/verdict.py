"""What a judge's answer means: token ids to compare, log-odds to combine, generated text to read.

Pure functions over ids and strings. A verdict from logits compares two finished sentences at their
first different token; one from generated text looks for the sentence's last clause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import takewhile

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.stages import LLAVA_COT_PROMPTS


def verdict_tokens(
    encode: Callable[[str], Sequence[int]],
    prompt_text: str,
    sentence_template: str,
    choices: tuple[str, str],
) -> tuple[list[int], int, int]:
    """(prefix_ids, id_a, id_b): what to prefill, and the two ids to compare after it.

    The prompt and each finished sentence are encoded as one text, so that merges across the seam
    are right; prefix_ids holds the prompt and whatever of the sentence both sides share. Sides that
    differ by more than one token are an InvalidInputError.
    """
    side_a, side_b = (
        list(encode(prompt_text + sentence_template.format(choice=choice))) for choice in choices
    )
    start = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(side_a, side_b)))
    rest_a, rest_b = side_a[start:], side_b[start:]
    if not (rest_a and rest_b and rest_a[0] != rest_b[0] and rest_a[1:] == rest_b[1:]):
        raise InvalidInputError(
            f"the verdict sentence {sentence_template!r} cannot be judged by logits: with "
            f"{choices[0]!r} and {choices[1]!r} it must differ in exactly one token, but this "
            f"tokenizer ends it in {rest_a} and {rest_b}; choose other words in the stage plan's "
            'prompts or mode="generate"'
        )
    return side_a[:start], rest_a[0], rest_b[0]


def combine_orders(log_odds_ab: float, log_odds_ba: float) -> tuple[float, bool]:
    """(log_odds that a is better, is_disagreement) from both orders.

    Each argument is the log-odds that the response shown first is better: a in `log_odds_ab`, b in
    `log_odds_ba`, +-inf where it was generated. Swapping the arguments negates the mean exactly.
    """
    is_disagreement = min(log_odds_ab, log_odds_ba) > 0 or max(log_odds_ab, log_odds_ba) < 0
    if log_odds_ab == log_odds_ba:  # two infinities that disagree are a tie, too
        return 0.0, is_disagreement
    return (log_odds_ab - log_odds_ba) / 2, is_disagreement


def verdict_phrase(template: str, choice: int) -> str:
    """The verdict sentence's last clause, which a generated verdict must contain.

    "Weighing both, I choose response {choice}." gives "I choose response 1".
    """
    before = template.partition("{choice}")[0]
    clause = re.split(r"[,.;\n]", before)[-1].lstrip()
    return f"{clause or before}{choice}"


def parse_verdict(text: str, template: str = LLAVA_COT_PROMPTS.verdict) -> tuple[int, bool]:
    """(chosen 1 or 2, is_malformed): the first phrase means 1, anything else 2, as published."""
    has_first = verdict_phrase(template, 1) in text
    has_second = verdict_phrase(template, 2) in text
    return (1 if has_first else 2), not (has_first or has_second)


def parse_gate(
    text: str, words: tuple[str, str] = LLAVA_COT_PROMPTS.gate_words
) -> tuple[bool, bool]:
    """(passes, is_malformed): only the failing word fails, as published; neither is malformed."""
    passes, fails = (
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
        for word in words
    )
    return not fails, not (passes or fails)
