"""Candidates with many wrong words: how a judge learns to see an error where it stands.

A single-error pair says twice in a hundred tokens what is wrong. Here words of both candidates are
exchanged, left out or doubled, each marked right or wrong (marks.py), and there is no verdict.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import zip_longest

from stagebeam.training.shapes.encoding import ChatEncoder, Mark
from stagebeam.training.shapes.facts import draw_fact
from stagebeam.training.shapes.judge_pairs import JudgePair
from stagebeam.training.shapes.marks import MARK_LAYERS, WORD_LAYERS, candidate_starts, mark_ids
from stagebeam.training.shapes.mistakes import wrong_fact
from stagebeam.training.shapes.miswriting import OTHERS

WAYS, WAY_SHARES = ("exchange", "any", "drop", "double"), (0.5, 0.26, 0.12, 0.12)
WORD = re.compile(r"[a-z]+|\d")
RATES = {"summary": 0.3, "caption": 0.25, "reasoning": 0.11}
FACT_RATE = 0.5
WRONG_WEIGHT, RIGHT_WEIGHT, WORD_WEIGHT = 1.5, 0.4, 0.3
NUM_FACTS = 4


@dataclass(frozen=True, slots=True)
class Claim:
    """A word of a text: where it ends, what should stand there, whether it does."""

    end: int
    right: str
    is_right: bool


def exchange(rng: random.Random, text: str, rate: float) -> tuple[str, list[Claim]]:
    """The text with words exchanged, left out or doubled, and claims on its words.

    In a reasoning what follows a wrong word up to the next count hangs on it both ways, so nothing is
    claimed there.
    """
    known = [found for found in WORD.finditer(text) if found.group() in OTHERS]
    is_walk = ":" in text
    said, claims, done, is_open, missing = "", [], 0, False, ""
    for found, following in zip_longest(known, known[1:]):
        word = found.group()
        said += text[done : found.start()]
        done = found.end()
        way = rng.choices(WAYS, WAY_SHARES)[0] if not is_open and rng.random() < rate else ""
        follows = following.group() if following and following.start() == done + 1 else word
        if missing:
            said += word
            claims.append(Claim(len(said), missing, False))
            way, missing = "", ""
        elif way == "drop" and follows != word:
            done, missing = done + 1, word
        elif way == "double" and follows != word:
            said += f"{word} {word}"
            claims += [
                Claim(len(said) - len(word) - 1, word, True),
                Claim(len(said), follows, False),
            ]
        else:
            wrong = tuple(OTHERS) if way == "any" else OTHERS[word]
            written = rng.choice(wrong) if way in ("exchange", "any") else word
            said += written
            if not is_open:
                claims.append(Claim(len(said), word, written == word))
        is_wrong = bool(claims) and not claims[-1].is_right and claims[-1].end == len(said)
        is_open = is_walk and (is_wrong or (is_open and not word.isdigit()))
    return said + text[done:], claims


def wrong_facts(rng: random.Random) -> tuple[str, list[Claim]]:
    """Facts one after another, half of them wrong; claims on their results."""
    text, claims = "", []
    for _ in range(NUM_FACTS):
        fact = draw_fact(rng)
        said = wrong_fact(rng, fact) if rng.random() < FACT_RATE else fact
        text += f"{fact[0]} {said[1]}"
        claims.append(Claim(len(text), fact[1], said == fact))
        text += f". So {said[1]}. "
    return text.strip(), claims


def mark_claims(
    encoder: ChatEncoder, pair: JudgePair, user_text: str, claims: tuple[list[Claim], list[Claim]]
) -> list[Mark]:
    """Marks on the words claimed in the pair's two texts; before some the right word is asked for."""
    correct, incorrect = mark_ids(encoder)
    encoding = encoder.tokenizer.encode(user_text, add_special_tokens=False)
    ending = {end: index for index, (_, end) in enumerate(encoding.offsets)}
    marks: dict[int, Mark] = {}
    words: dict[int, Mark] = {}
    for begin, said in zip(candidate_starts(pair, user_text), claims, strict=True):
        for number, claim in enumerate(said):
            at = ending.get(begin + claim.end)
            if at is None:
                continue
            if not claim.is_right:
                marks[at] = Mark(at, incorrect, WRONG_WEIGHT, MARK_LAYERS)
            elif number % 2:
                marks[at] = Mark(at, correct, RIGHT_WEIGHT, MARK_LAYERS)
            token = encoder.ids(f" {claim.right}")[0]
            words[at - 1] = Mark(at - 1, token, WORD_WEIGHT, WORD_LAYERS)
    return sorted((words | marks).values(), key=lambda mark: mark.position)
