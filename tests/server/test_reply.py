"""Splitting an answer's text into reasoning and reply, whole or as it grows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.engine.events import StageCommitted, StageStarted, TokenText
from stagebeam.engine.server.reply import Transcript, split
from stagebeam.engine.stages import LLAVA_COT_PLAN, Stage, StagePlan

PARTS = [
    "<SUMMARY>",
    "</SUMMARY>",
    "<CONCLUSION>",
    "</CONCLUSION>",
    "<CON",
    "<",
    " ",
    "\n",
    "a",
    "ab",
]
texts = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)
stops = st.lists(st.sampled_from(["a", "b ", "ab\n", "\n\n", "<", "aab"]), max_size=3)


@pytest.mark.parametrize(
    ("text", "reasoning", "reply"),
    [
        ("<SUMMARY> s </SUMMARY>\n<CONCLUSION> c </CONCLUSION>", "<SUMMARY> s </SUMMARY>", "c"),
        ("<SUMMARY> s </SUMMARY>\n<CONCLUSION> c", "<SUMMARY> s </SUMMARY>", "c"),
        ("<SUMMARY> s <CONCLUSION", "<SUMMARY> s <CONCLUSION", ""),
        (" plain <CONCLUSION> text ", "", "plain <CONCLUSION> text"),
        ("<CONCLUSION> c </CONCLUSION> d", "", "c"),
        ("<SUM", "", "<SUM"),
        ("  ", "", ""),
    ],
)
def test_a_whole_text(text: str, reasoning: str, reply: str) -> None:
    found = split(text, LLAVA_COT_PLAN, is_whole=True)
    assert (found.reasoning, found.reply) == (reasoning, reply)


def test_the_reply_is_the_plans_conclusion() -> None:
    text = "<SUMMARY> s </SUMMARY> <CONCLUSION>  c d </CONCLUSION>\n"
    assert split(text, LLAVA_COT_PLAN, is_whole=True).reply == LLAVA_COT_PLAN.conclusion(text)


@given(text=texts, cuts=st.lists(st.integers(0, 80), max_size=10), stop=stops)
def test_what_was_told_stands(text: str, cuts: list[int], stop: list[str]) -> None:
    """Every piece extends what was told before, and together they are what the whole text gives."""
    whole = split(text, LLAVA_COT_PLAN, stop, is_whole=True)
    bounds = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    transcript = Transcript(plan=LLAVA_COT_PLAN, stop=stop)
    transcript.take(StageStarted(stage="answer", num_candidates=1))
    reasoning = reply = ""
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    deltas = [
        transcript.take(
            TokenText(stage="answer", candidate=0, text=piece, token_ids=(i,), logprobs=(-1.0,))
        )
        for i, piece in enumerate(pieces)
    ]
    tokens: list[tuple[int, float]] = []
    for delta in [*deltas, transcript.finish()]:
        if delta is not None:
            reasoning += delta.reasoning
            reply += delta.reply
            tokens += delta.tokens
    assert (reasoning, reply) == (whole.reasoning, whole.reply)
    holding = "".join(pieces[token] for token, _ in tokens)
    assert reply in holding
    assert tokens == transcript.tokens == sorted(set(tokens))


def test_the_winner_is_told_when_it_is_known() -> None:
    plan = StagePlan(stages=(Stage(name="a", tag="A", criterion="x"),))
    transcript = Transcript(plan=plan)
    events = [
        StageStarted(stage="a", num_candidates=2),
        TokenText(stage="a", candidate=0, text="<A>no"),
        TokenText(stage="a", candidate=1, text="<A>y"),
        TokenText(stage="a", candidate=1, text="es</A>"),
    ]
    assert [transcript.take(event) for event in events] == [None] * 4
    delta = transcript.take(StageCommitted(stage="a", winner=1, text="yes"))
    assert delta is not None
    assert delta.reply == "yes"
    assert transcript.finish() is None
