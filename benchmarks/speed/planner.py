"""Time and memory of a stage-level beam search by phase, predicted from sizes: nothing is run.

The engine's own policy is played against a responder that has no model, so the matches, the judge's
rounds and what their prompts share are those of a real search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagebeam.benchmarks.baselines.task import Lengths
from stagebeam.benchmarks.speed.costs import Costs, Step
from stagebeam.engine.branch import Branch
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.memory.kept_prompts import shared_tokens
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.search.policies import make_policy
from stagebeam.engine.search.requests import Gate, Judge, Sample, Verdict
from stagebeam.engine.stages import LLAVA_COT_PLAN, StagePlan

BLOCK_SIZE = 16
Prompt = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds by phase and bytes of one search.

    step_seconds: a decode step's mean; num_judge_tokens: prefilled for judging, shared parts once
    kv_bytes:     one trunk, N tails and one image, at their widest
    """

    beam_size: int
    image_encode: float
    prefill: float
    decode: float
    judge: float
    step_seconds: float
    num_judge_tokens: int
    num_judge_passes: int
    kv_bytes: int
    weight_bytes: int

    @property
    def total(self) -> float:
        return self.image_encode + self.prefill + self.decode + self.judge


def predict(
    spec: ModelSpec,
    costs: Costs,
    beam_size: int,
    lengths: Lengths,
    judge: JudgeParams,
    plan: StagePlan = LLAVA_COT_PLAN,
) -> Prediction:
    """One question with an image (where the model sees), stages of forced lengths."""
    vision = spec.tokens_per_tile  # one tile's worth is valid, as in the benchmarks
    prompt = lengths.prompt - 1
    played = _play(beam_size, lengths, judge, plan)
    decode, num_steps, widest, trunk = 0.0, 0, 0, lengths.prompt
    for tokens in lengths.stages:
        step = Step(
            rows=beam_size,
            trunk_tokens=trunk - 1,
            tail_tokens=(tokens + 1) / 2,
            vision_tokens=vision,
        )
        decode += tokens * costs.decode_step(spec, step)
        num_steps += tokens
        widest = max(widest, _blocks(trunk - 1, tokens, beam_size))
        trunk += tokens
    judging = sum(costs.prefill(spec, num, context) for num, context in played)
    kv = BLOCK_SIZE * spec.kv_bytes_per_token(costs.kv_bytes)
    return Prediction(
        beam_size=beam_size,
        image_encode=costs.encode(spec),
        prefill=costs.prefill(spec, prompt, prompt / 2),
        decode=decode,
        judge=judging,
        step_seconds=decode / num_steps,
        num_judge_tokens=sum(num for num, _ in played),
        num_judge_passes=len(played),
        kv_bytes=widest * kv + spec.image_slot_bytes(costs.kv_bytes),
        weight_bytes=int(spec.num_parameters * costs.weight_bytes),
    )


def _blocks(trunk: int, tokens: int, beam_size: int) -> int:
    shared = trunk // BLOCK_SIZE
    own = -(-(trunk + tokens) // BLOCK_SIZE) - shared
    return -(-trunk // BLOCK_SIZE) + beam_size * own


def _play(
    beam_size: int, lengths: Lengths, judge: JudgeParams, plan: StagePlan
) -> list[tuple[int, float]]:
    """(tokens to prefill, mean context) of every judge round of one search."""
    if len(plan.stages) != len(lengths.stages):
        raise InvalidInputError(
            f"forced lengths {lengths.stages} need one number a stage of the plan, which has "
            f"{len(plan.stages)}"
        )
    policy = make_policy(
        "",
        plan,
        SearchParams(beam_size=beam_size),
        SamplingParams(seed=0),
        judge,
        0,
    )
    rounds: list[tuple[int, float]] = []
    kept: list[Prompt] = []
    key = 0
    result: Any = None
    while True:
        try:
            request = policy.send(result)
        except StopIteration:
            return rounds
        result = None
        match request:
            case Sample():
                kept = []
                result = []
                for i in range(request.n):
                    key += 1
                    result.append(_branch(key, i, lengths.stages[request.stage]))
            case Judge():
                rounds.append(_round(request, lengths, judge, kept))
                result = [
                    Verdict(log_odds=1.0 if pair.first < pair.second else -1.0)
                    for pair in request.pairs
                ]
            case Gate():
                result = [True] * len(request.reasonings)


def _branch(key: int, index: int, tokens: int) -> Branch:
    """A candidate whose text is one word a token, no two alike."""
    text = " ".join(f"{key}.{i}" for i in range(tokens))
    return Branch(
        key=key,
        index=index,
        text=text,
        inner=text,
        token_ids=(0,) * tokens,
        cumulative_logprob=0.0,
        finish_reason="tag",
    )


def _round(
    request: Judge, lengths: Lengths, judge: JudgeParams, kept: list[Prompt]
) -> tuple[int, float]:
    """A round's prompts as the engine prefills them, each after the one that begins most alike of
    the one before it and the tournament's earlier rounds; they join `kept`."""
    head = ["head"] * lengths.judge_head
    for _, text in request.hints:
        head += text.split()
    tail = ["tail"] * lengths.judge_tail
    prompts: list[Prompt] = []
    for pair in request.pairs:
        first, second = pair.first.split(), pair.second.split()
        prompts.append((*head, *first, *second, *tail))
        if judge.has_both_orders:
            prompts.append((*head, *second, *first, *tail))
    prompts.sort()
    fresh, contexts = 0, 0.0
    before: list[Prompt] = []
    for prompt in prompts:
        shared = max((shared_tokens(b, prompt, BLOCK_SIZE) for b in [*kept, *before]), default=0)
        rows = len(prompt) - shared
        fresh += rows
        contexts += rows * (shared + len(prompt)) / 2
        before = [prompt]
    kept += prompts
    return fresh, contexts / max(fresh, 1)
