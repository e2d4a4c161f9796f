"""A scripted model: answers a policy's requests from hashes, without tokens, caches or weights.

It also keeps the loop's side of the contract: only live branches are forked, committed or released.
"""

from __future__ import annotations

import hashlib
import math
import random

import pytest

from stagebeam.engine.branch import Branch
from stagebeam.engine.search.requests import (
    Commit,
    Gate,
    Judge,
    Release,
    Report,
    Sample,
    Score,
    Verdict,
)

WORDS = ["red", "green", "blue", "two", "three", "a circle", "{first}", "<b>"]


class ScriptedModel:
    """Texts, endings, verdicts, gates and scores as functions of a seed and their place.

    num_words:  how many different texts a stage can have (few make duplicates)
    broken:     the share of candidates that end badly; `endings` maps (stage, round, index) to an
                ending that overrides it
    """

    def __init__(self, seed=0, mode="logits", num_words=8, broken=0.0, endings=None, texts=None):
        self.seed = seed
        self.mode = mode
        self.num_words = num_words
        self.broken = broken
        self.endings = endings or {}
        self.texts = texts or {}
        self.live = {0: ""}  # branch key -> the whole text so far
        self.requests = []
        self.events = []
        self.released = 0

    def rng(self, *place) -> random.Random:
        digest = hashlib.blake2b(repr((self.seed, *place)).encode(), digest_size=8).digest()
        return random.Random(int.from_bytes(digest, "big"))

    def candidate(self, so_far, sample, index) -> tuple[str, str, str]:
        """(text, inner, finish_reason) of one candidate."""
        rng = self.rng("candidate", so_far, sample.stage, sample.round, index)
        word = f"{sample.name} {WORDS[rng.randrange(self.num_words)]}"
        bad = rng.choice(["eos", "length", "wrong_tag"])
        ending = bad if rng.random() < self.broken else "tag"
        place = (sample.stage, sample.round, index)
        ending = self.endings.get(place, ending)
        if place in self.texts:
            text = self.texts[place]
        elif sample.until.stage is not None:
            stage = sample.until.stage
            close = stage.close_tag if ending == "tag" else ""
            text = f"\n{stage.open_tag} {word} {close}"
        else:
            goals = sample.until.goals
            goal = goals[rng.randrange(len(goals))] if ending == "tag" else ""
            text = f" {word}{goal}"
        inner = sample.until.stage.inner_text(text) if sample.until.stage else text.strip()
        return text, inner, ending

    def log_odds(self, request, pair) -> float:
        """That the first is better; a third of logit verdicts tie."""
        place = ("judge", request.stage, request.round, request.criterion, request.hints)
        if self.mode == "generate":
            rng = self.rng(*place, pair.first, pair.second, pair.index)
            return rng.choice([math.inf, -math.inf])
        low, high = sorted((pair.first, pair.second))
        value = self.rng(*place, low, high).choice([-2.0, 0.0, 1.5])
        return value if pair.first == low else -value

    def passes(self, request, reasoning, index) -> bool:
        return self.rng("gate", request.stage, request.hints, reasoning, index).random() < 0.6

    def score(self, text) -> float:
        return self.rng("score", text).gauss(0, 1)

    def answer(self, request):
        """The loop's part: one request's result."""
        self.requests.append(request)
        if isinstance(request, Sample):
            so_far = self.live[request.prefix.key]
            branches = []
            for i in range(request.n):
                text, inner, ending = self.candidate(so_far, request, request.first_index + i)
                branch = Branch(
                    key=len(self.live) + self.released + i,
                    index=i,
                    text=text,
                    inner=inner,
                    token_ids=tuple(text.encode()),
                    cumulative_logprob=-1.0 * len(text),
                    finish_reason=ending,
                )
                branches.append(branch)
            for branch in branches:
                self.live[branch.key] = so_far + branch.text
            return branches
        if isinstance(request, Judge):
            assert request.pairs
            verdicts = [self.log_odds(request, pair) for pair in request.pairs]
            return [Verdict(log_odds=value, text=f"odds {value}") for value in verdicts]
        if isinstance(request, Gate):
            places = zip(request.reasonings, request.indices, strict=True)
            return [self.passes(request, reasoning, index) for reasoning, index in places]
        if isinstance(request, Score):
            for branch, text in zip(request.branches, request.texts, strict=True):
                assert self.live[branch.key] == text
            return [self.score(text) for text in request.texts]
        if isinstance(request, Commit):
            self.released += len(self.live) - 1
            self.live = {request.branch.key: self.live[request.branch.key]}
        elif isinstance(request, Release):
            for branch in request.branches:
                del self.live[branch.key]
                self.released += 1
        else:
            assert isinstance(request, Report)
            self.events.append(request.event)
        return None

    def run(self, policy):
        """Drive a policy to its end and return its result."""
        reply = None
        while True:
            try:
                request = policy.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = self.answer(request)

    def asked(self, kind) -> list:
        return [request for request in self.requests if isinstance(request, kind)]


@pytest.fixture
def scripted():
    """The scripted model's class."""
    return ScriptedModel
