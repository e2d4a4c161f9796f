"""Stage-level beam search as published: N candidates a stage, one survivor by pairwise judging.

for stage in plan:
    candidates = N samples of this stage from the same prefix, each ending at its closing tag
    while len(candidates) > 1: two popped at random meet, the judge's winner is put back
    prefix += the survivor
"""

from __future__ import annotations

from stagebeam.engine.branch import Branch
from stagebeam.engine.judge.tournament import play
from stagebeam.engine.outputs import Match
from stagebeam.engine.search.context import SearchContext, Trunk
from stagebeam.engine.search.requests import Policy


def stage_beam(context: SearchContext) -> Policy:
    """Grow the answer stage by stage; a survivor that ended badly ends the search."""
    trunk = Trunk()
    for index, stage in enumerate(context.plan.stages):
        width = stage.beam_size or context.search.beam_size
        candidates: list[Branch] = yield context.sample_stage(trunk.branch, index, width)
        matches: tuple[Match, ...] = ()
        if stage.is_judged:
            contest = context.stage_contest(index, trunk.stages)
            survivor, matches = yield from play(contest, candidates)
        else:
            survivor = first_well_formed(candidates)
        yield from trunk.commit(stage.name, candidates, survivor, matches)
        if not trunk.branch.is_well_formed:
            break
    return trunk.result(trunk.branch.finish_reason)


def first_well_formed(candidates: list[Branch]) -> int:
    """The lowest candidate that ended well, 0 where none did."""
    return next((i for i, candidate in enumerate(candidates) if candidate.is_well_formed), 0)
