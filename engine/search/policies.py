"""From a question's parameters to its policy."""

from __future__ import annotations

from collections.abc import Callable

from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams, Strategy
from stagebeam.engine.search.best_of_n import best_of_n
from stagebeam.engine.search.context import SearchContext
from stagebeam.engine.search.requests import Policy
from stagebeam.engine.search.sentence_beam import sentence_beam
from stagebeam.engine.search.single import single
from stagebeam.engine.search.stage_beam import stage_beam
from stagebeam.engine.search.swires import check_swires_plan, swires
from stagebeam.engine.stages import StagePlan

POLICIES: dict[Strategy, Callable[[SearchContext], Policy]] = {
    "greedy": single,
    "single": single,
    "best_of_n": best_of_n,
    "sentence_beam": sentence_beam,
    "stage_beam": stage_beam,
    "swires": swires,
}


def make_policy(
    question_text: str,
    plan: StagePlan,
    search: SearchParams,
    sampling: SamplingParams,
    judge: JudgeParams,
    seed: int,
) -> Policy:
    """The search that answers this question, not yet started; `seed` is the resolved one."""
    if search.strategy == "swires":
        check_swires_plan(plan)
    return POLICIES[search.strategy](
        SearchContext(
            question=question_text,
            plan=plan,
            search=search,
            sampling=sampling,
            judge=judge,
            seed=seed,
        )
    )
