"""Stage-wise retracing search: go back to the captions until the reasonings score well enough.

the stages before the last three are sampled once
for round in at most C rounds:
    M captions from there; the best N get M // N reasonings each; all reasonings join the pool
    stop when the pool's best (or second best) score exceeds the cutoff
the pool's best get one conclusion each; the best-scored conclusion wins

Scores come from the question's external scorer; a malformed branch is never scored or continued.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from stagebeam.engine.branch import Branch
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.outputs import Candidate, StageResult
from stagebeam.engine.params import SwiresParams
from stagebeam.engine.search.context import SearchContext, Trunk
from stagebeam.engine.search.requests import Commit, Policy, Release, Request, Score
from stagebeam.engine.stages import StagePlan

NUM_SCORED_STAGES = 3  # captions, reasonings, conclusions: the plan's last three


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A scored branch on a path from the trunk; equal only to itself.

    place: in its stage's list of all candidates; text: the answer so far with it
    score: -inf for a malformed branch
    """

    branch: Branch
    place: int
    text: str
    score: float
    parent: Node | None

    @property
    def path(self) -> list[Node]:
        """From the caption to this node."""
        return [*(self.parent.path if self.parent else ()), self]


def check_swires_plan(plan: StagePlan) -> None:
    """Raise InvalidInputError for a plan without captions, reasonings and conclusions."""
    if len(plan.stages) < NUM_SCORED_STAGES:
        raise InvalidInputError(
            "strategy 'swires' retraces a plan's last three stages (captions, reasonings, "
            f"conclusions), but the plan has {len(plan.stages)}; use another strategy or plan"
        )


def swires(context: SearchContext) -> Policy:
    """Search with retracing; all captions and reasonings tried are in the result's stages."""
    params = context.search.swires
    num_opening = len(context.plan.stages) - NUM_SCORED_STAGES
    trunk = Trunk()
    for index in range(num_opening):
        opening: list[Branch] = yield context.sample_stage(trunk.branch, index, 1)
        yield from trunk.commit(context.plan.stages[index].name, opening, 0)
        if not trunk.branch.is_well_formed:
            return trunk.result(trunk.branch.finish_reason)

    tried: tuple[list[Node], list[Node], list[Node]] = ([], [], [])  # a list a scored stage
    num_conclusions = params.num_conclusions or params.keep
    pool: list[Node] = []  # best first, over all rounds; the first num_conclusions are live
    for round in range(params.max_rounds):
        captions = yield from grow(
            context, num_opening, trunk, (None,), params.num_captions, round, tried[0]
        )
        kept = best(captions, params.keep)
        reasonings: list[Node] = []
        if kept:
            per_caption = params.num_captions // params.keep
            reasonings = yield from grow(
                context, num_opening + 1, trunk, kept, per_caption, round, tried[1]
            )
        live = pool[:num_conclusions]
        pool = best([*pool, *reasonings], None)
        spare = [
            node for node in (*live, *captions, *reasonings) if node not in pool[:num_conclusions]
        ]
        if not pool:  # something must be left to commit if no round brings a reasoning
            spare.remove((reasonings or captions)[0])
        yield Release(branches=tuple(node.branch for node in spare))
        if has_passed(pool, params):
            break

    leaf = (tried[1] or tried[0])[0]
    if pool:
        conclusions = yield from grow(
            context, num_opening + 2, trunk, pool[:num_conclusions], 1, 0, tried[2]
        )
        leaf = max(conclusions, key=lambda node: node.score)
    yield Commit(branch=leaf.branch)
    for index, node in enumerate(leaf.path):
        candidates = tuple(
            Candidate.from_branch(
                other.branch, score=other.score if other.score > -math.inf else None
            )
            for other in tried[index]
        )
        name = context.plan.stages[num_opening + index].name
        yield from trunk.append(StageResult(name=name, candidates=candidates, winner=node.place))
    return trunk.result(leaf.branch.finish_reason)


def grow(
    context: SearchContext,
    index: int,
    trunk: Trunk,
    parents: Sequence[Node | None],
    n: int,
    round: int,
    tried: list[Node],
) -> Generator[Request, Any, list[Node]]:
    """Sample and score n children of each parent (None is the trunk); they join `tried`."""
    grown: list[tuple[Branch, str, Node | None]] = []
    for position, parent in enumerate(parents):
        prefix, text = (parent.branch, parent.text) if parent else (trunk.branch, trunk.text)
        branches = yield context.sample_stage(prefix, index, n, round, first_index=position * n)
        grown += [(branch, text + branch.text, parent) for branch in branches]
    sound = [(branch, text) for branch, text, _ in grown if branch.is_well_formed]
    scores: list[float] = []
    if sound:
        scores = yield Score(
            branches=tuple(branch for branch, _ in sound), texts=tuple(text for _, text in sound)
        )
    if len(scores) != len(sound) or not all(math.isfinite(score) for score in scores):
        raise InvalidInputError(
            f"the scorer must give one finite number for each of {len(sound)} texts, got {scores}"
        )
    remaining = iter(scores)
    nodes = [
        Node(
            branch=branch,
            place=len(tried) + position,
            text=text,
            score=next(remaining) if branch.is_well_formed else -math.inf,
            parent=parent,
        )
        for position, (branch, text, parent) in enumerate(grown)
    ]
    tried += nodes
    return nodes


def best(nodes: Sequence[Node], count: int | None) -> list[Node]:
    """The `count` best-scored well-formed nodes (None: all), best first, ties to the earlier."""
    sound = [node for node in nodes if node.branch.is_well_formed]
    return sorted(sound, key=lambda node: -node.score)[:count]


def has_passed(pool: Sequence[Node], params: SwiresParams) -> bool:
    """Whether the pool's best (or second best) score exceeds the cutoff."""
    rank = 0 if params.stop_on == "best" else 1
    return len(pool) > rank and pool[rank].score > params.cutoff
