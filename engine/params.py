"""What a caller may ask for: sampling, search and judging parameters.

Frozen, validated once, and free of torch: nothing here knows a model or a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from stagebeam.engine.errors import InvalidInputError

Strategy = Literal["greedy", "single", "best_of_n", "sentence_beam", "stage_beam", "swires"]
JudgeMode = Literal["logits", "generate"]
Tournament = Literal["paper", "knockout", "round_robin"]
Schedule = Literal["all", "played", "auto"]

MAX_SEED = 2**64 - 1
MAX_BEAM_SIZE = 1024


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise InvalidInputError(f"{name} must be {expected}, got {got!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_choice(value: object, choices: object, name: str) -> None:
    options = get_args(choices)
    _require(value in options, name, "one of " + ", ".join(options), value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; the defaults are the published ones.

    temperature: 0 is argmax, ties to the lowest id
    top_k:       0 or -1 is off; ties at the boundary are all kept, as HF does
    top_p:       1 is off; min_p: 0 is off
    max_tokens:  new tokens per call, so per stage
    seed:        0 .. 2**64 - 1; None derives one per question from the engine's seed
    n:           samples per prompt, for `Engine.generate` only
    stop:        strings that end a sample, for `Engine.generate` only
    ignore_eos:  go on after an end-of-sequence token (forced lengths in benchmarks)
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 50
    min_p: float = 0.0
    max_tokens: int = 2048
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        t, p, m = self.temperature, self.top_p, self.min_p
        _require(_is_number(t) and t >= 0, "temperature", "a finite number >= 0", t)
        _require(_is_number(p) and 0 < p <= 1, "top_p", "in (0, 1]", p)
        _require(_is_int(self.top_k) and self.top_k >= -1, "top_k", "an int >= -1", self.top_k)
        _require(_is_number(m) and 0 <= m <= 1, "min_p", "in [0, 1]", m)
        _require(
            _is_int(self.max_tokens) and self.max_tokens >= 1,
            "max_tokens",
            "an int >= 1",
            self.max_tokens,
        )
        _require(
            self.seed is None or (_is_int(self.seed) and 0 <= self.seed <= MAX_SEED),
            "seed",
            "None or an int in 0 .. 2**64 - 1",
            self.seed,
        )
        _require(
            _is_int(self.n) and 1 <= self.n <= MAX_BEAM_SIZE,
            "n",
            f"an int in 1 .. {MAX_BEAM_SIZE}",
            self.n,
        )
        is_strings = isinstance(self.stop, (tuple, list)) and all(
            isinstance(s, str) and s for s in self.stop
        )
        _require(is_strings, "stop", "a tuple of non-empty strings", self.stop)
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiresParams:
    """Stage-wise retracing search of LLaVA-CoT's later versions; the defaults are the paper's.

    num_captions:    M captions a round
    keep:            the best N captions get `num_captions // keep` reasonings each
    num_conclusions: the best reasonings of the pool that get a conclusion; None is `keep`
    max_rounds:      C, the most rounds of captions and reasonings
    cutoff, stop_on: rounds end when the pool's "best" or "second_best" score exceeds the cutoff
    """

    num_captions: int = 4
    keep: int = 2
    num_conclusions: int | None = None
    max_rounds: int = 3
    cutoff: float = -0.2431
    stop_on: Literal["best", "second_best"] = "best"

    def __post_init__(self) -> None:
        for name in ("num_captions", "keep", "max_rounds"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, f"swires.{name}", "an int >= 1", value)
        _require(self.keep <= self.num_captions, "swires.keep", "at most num_captions", self.keep)
        n = self.num_conclusions
        _require(
            n is None or (_is_int(n) and n >= 1), "swires.num_conclusions", "None or an int >= 1", n
        )
        _require(_is_number(self.cutoff), "swires.cutoff", "a finite number", self.cutoff)
        _require(
            self.stop_on in ("best", "second_best"),
            "swires.stop_on",
            "'best' or 'second_best'",
            self.stop_on,
        )


SWIRES_RELEASE = SwiresParams(num_conclusions=3, max_rounds=5, stop_on="second_best")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchParams:
    """Which search runs and how wide.

    beam_size:  N candidates (a stage, an answer or a sentence); `greedy` and `single` take 1
    max_rounds: the most sentences of a `sentence_beam` answer
    """

    strategy: Strategy = "stage_beam"
    beam_size: int = 4
    max_rounds: int = 64
    swires: SwiresParams = SwiresParams()

    def __post_init__(self) -> None:
        _require_choice(self.strategy, Strategy, "strategy")
        _require(
            _is_int(self.beam_size) and 1 <= self.beam_size <= MAX_BEAM_SIZE,
            "beam_size",
            f"an int in 1 .. {MAX_BEAM_SIZE}",
            self.beam_size,
        )
        _require(
            _is_int(self.max_rounds) and self.max_rounds >= 1,
            "max_rounds",
            "an int >= 1",
            self.max_rounds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeParams:
    """How candidates are compared (as in LLaVA-CoT's first versions).

    mode:       "logits", one forward pass and no generated token, or "generate", the published form
    tournament: "paper" (two at random, the winner back), "knockout" or "round_robin"
    schedule:   "all" scores every match that may be played in one round, "played" only those
                played, "auto" takes the cheaper; the winner is the same
    both_orders: ask each match in both orders and average; None means the mode's default (on for
                "logits", off for "generate", as published)
    gate:       ask text-only whether a reasoning is correct before its match; None means the
                mode's default (off for "logits", on for "generate")
    vote_weight: how much it counts that a text was sampled more often (self-consistency): a match's
                log-odds grow by vote_weight * log(copies of the first / copies of the second); 0, as
                published, counts no copies, and 1 takes them as a prior
    sampling:   how generated verdicts are sampled, for mode "generate"; None takes the question's
    """

    mode: JudgeMode = "logits"
    tournament: Tournament = "paper"
    schedule: Schedule = "auto"
    both_orders: bool | None = None
    gate: bool | None = None
    vote_weight: float = 0.0
    sampling: SamplingParams | None = None

    def __post_init__(self) -> None:
        _require_choice(self.mode, JudgeMode, "mode")
        _require_choice(self.tournament, Tournament, "tournament")
        _require_choice(self.schedule, Schedule, "schedule")
        for name in ("both_orders", "gate"):
            value = getattr(self, name)
            _require(value is None or isinstance(value, bool), name, "None or a bool", value)
        _require(
            _is_number(self.vote_weight) and self.vote_weight >= 0,
            "vote_weight",
            "a finite number >= 0",
            self.vote_weight,
        )

    @property
    def has_both_orders(self) -> bool:
        return self.mode == "logits" if self.both_orders is None else self.both_orders

    @property
    def has_gate(self) -> bool:
        return self.mode == "generate" if self.gate is None else self.gate
