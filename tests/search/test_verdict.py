"""Verdicts: the tokens compared, both orders combined, generated text read; and the prompts."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.judge.prompts import gate_text, hint_text, pair_text
from stagebeam.engine.judge.verdict import (
    combine_orders,
    parse_gate,
    parse_verdict,
    verdict_phrase,
    verdict_tokens,
)
from stagebeam.engine.stages import LLAVA_COT_PROMPTS as PROMPTS


class PatternTokenizer:
    """Greedy longest match by a pattern; ids in order of appearance."""

    def __init__(self, pattern: str):
        self.pattern = re.compile(pattern, re.DOTALL)
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(piece, len(self.ids)) for piece in self.pattern.findall(text)]

    def decode(self, ids) -> str:
        pieces = list(self.ids)
        return "".join(pieces[i] for i in ids)


# As byte-level BPE: a space belongs to the word after it; " 1" is one token.
SPACE_FIRST = r" ?\w+|\s|[^\w\s]"
# As SentencePiece: digits stand alone, so " 1" is two tokens.
SPACE_APART = r" ?[^\W\d]+|\d| |\s|[^\w\s]"
PROMPT = "<user> Response 1: a. Response 2: b.\n<assistant>\n"


@pytest.mark.parametrize(
    ("pattern", "forced", "sides"),
    [
        (SPACE_FIRST, "Weighing both, I choose response", (" 1", " 2")),
        (SPACE_APART, "Weighing both, I choose response ", ("1", "2")),
    ],
)
def test_the_verdict_is_forced_up_to_the_first_difference(pattern, forced, sides):
    tokenizer = PatternTokenizer(pattern)
    prefix, id_a, id_b = verdict_tokens(tokenizer.encode, PROMPT, PROMPTS.verdict, ("1", "2"))
    assert tokenizer.decode(prefix) == PROMPT + forced
    assert (tokenizer.decode([id_a]), tokenizer.decode([id_b])) == sides


def test_merges_across_the_seam_are_kept():
    tokenizer = PatternTokenizer(r"\nWeighing|.")
    prefix, id_a, id_b = verdict_tokens(tokenizer.encode, PROMPT, PROMPTS.verdict, ("1", "2"))
    assert tokenizer.ids["\nWeighing"] in prefix
    assert tokenizer.decode([id_a, id_b]) == "12"


def test_a_tail_merged_with_the_choice_is_one_token_too():
    tokenizer = PatternTokenizer(r"\d\.|.")
    _, id_a, id_b = verdict_tokens(tokenizer.encode, "", PROMPTS.verdict, ("1", "2"))
    assert tokenizer.decode([id_a, id_b]) == "1.2."


@pytest.mark.parametrize(
    ("pattern", "template", "choices"),
    [
        (r".", "The reasoning is {choice}.", ("correct", "incorrect")),  # letter by letter
        (r".", "Number {choice}", ("1", "12")),  # one sentence is the start of the other
        (r".", "Number {choice}", ("1", "1")),
    ],
)
def test_sides_that_differ_by_more_than_a_token_are_refused(pattern, template, choices):
    tokenizer = PatternTokenizer(pattern)
    with pytest.raises(InvalidInputError, match="exactly one token"):
        verdict_tokens(tokenizer.encode, PROMPT, template, choices)


def test_real_words_of_the_gate():
    tokenizer = PatternTokenizer(SPACE_FIRST)
    prefix, id_a, id_b = verdict_tokens(
        tokenizer.encode, PROMPT, PROMPTS.gate_verdict, PROMPTS.gate_words
    )
    assert tokenizer.decode(prefix).endswith("The reasoning is")
    assert tokenizer.decode([id_a, id_b]) == " correct incorrect"


@pytest.mark.parametrize(
    ("ab", "ba", "mean", "is_disagreement"),
    [
        (2.0, -1.0, 1.5, False),
        (-2.0, 1.0, -1.5, False),
        (2.0, 1.0, 0.5, True),  # each order picks what it shows first
        (-3.0, -1.0, -1.0, True),
        (0.0, 1.0, -0.5, False),
        (0.0, 0.0, 0.0, False),
        (math.inf, -math.inf, math.inf, False),
        (math.inf, math.inf, 0.0, True),
        (-math.inf, -math.inf, 0.0, True),
    ],
)
def test_combine_orders(ab, ba, mean, is_disagreement):
    assert combine_orders(ab, ba) == (mean, is_disagreement)
    assert combine_orders(ba, ab) == (-mean, is_disagreement)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The first is right. I choose response 1.", (1, False)),
        ("I choose response 2", (2, False)),
        ("I choose response 1 and not I choose response 2", (1, False)),
        ("Response 1 is better.", (2, True)),
        ("", (2, True)),
    ],
)
def test_parse_verdict(text, expected):
    assert parse_verdict(text) == expected


def test_generated_verdicts_follow_the_plans_sentence():
    assert verdict_phrase(PROMPTS.verdict, 1) == "I choose response 1"
    assert verdict_phrase("better: {choice}", 2) == "better: 2"
    assert verdict_phrase("{choice} wins", 2) == "2"
    assert parse_verdict("so better: 1", "better: {choice}") == (1, False)
    assert parse_verdict("I choose response 1", "better: {choice}") == (2, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The reasoning is correct.", (True, False)),
        ("The reasoning is incorrect.", (False, False)),
        ("Incorrect: 2 + 2 is not 5", (False, False)),
        ("It seems fine.", (True, True)),
        ("", (True, True)),
    ],
)
def test_parse_gate(text, expected):
    assert parse_gate(text) == expected


def test_prompts_fill_each_field_once():
    hints = (("caption", "{question} {first}"), ("reasoning", "{0}"))
    text = pair_text(PROMPTS, "is {better}", "why {}?", hints, "{second} <b>", "{{b}}")
    for part in ("is {better}", "Question: why {}?", "Known caption: {question} {first}\n"):
        assert part in text
    assert "Response 1: {second} <b>\nResponse 2: {{b}}\n" in text
    text = gate_text(PROMPTS, hints, "{hint}")
    assert "Known reasoning: {0}\nReasoning: {hint}\n" in text
    assert hint_text(PROMPTS, ()) == ""


def test_matches_with_the_same_first_candidate_share_the_longest_head():
    texts = [pair_text(PROMPTS, "c", "q", (("caption", "x"),), "first", b) for b in ("y", "z")]
    shared = texts[0][: texts[0].index("Response 2: ") + len("Response 2: ")]
    assert texts[1].startswith(shared)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("choose {choice", "not a format string.*literal braces"),
        ("choose {choice} or {}", "must use the fields"),
        ("choose", "must use the fields"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(text, message):
    with pytest.raises(InvalidInputError, match=message):
        replace(PROMPTS, verdict=text)
