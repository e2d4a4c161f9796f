"""Best-of-N: whole answers, one tournament.

A whole answer ends well at the last stage's closing tag; end of sequence before it is malformed.
"""

from __future__ import annotations

from stagebeam.engine.branch import Branch
from stagebeam.engine.judge.tournament import play
from stagebeam.engine.search.context import SearchContext, Trunk
from stagebeam.engine.search.requests import Policy


def best_of_n(context: SearchContext) -> Policy:
    """Sample N answers and keep the tournament's winner; the result has the one stage "answer"."""
    trunk = Trunk()
    answers: list[Branch] = yield context.sample_answer(context.search.beam_size, context.sampling)
    contest = context.contest("answer", context.plan.prompts.answer_criterion)
    winner, matches = yield from play(contest, answers)
    yield from trunk.commit("answer", answers, winner, matches)
    return trunk.result(trunk.branch.finish_reason)
