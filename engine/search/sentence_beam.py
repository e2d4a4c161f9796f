"""Sentence-level beam search: N next sentences a round, one survivor, until the answer is closed.

A sentence ends at "." or at the last stage's closing tag. A token may hold the end of a sentence and
the start of that tag (".</"), so whether the answer is closed is read from all its text.
"""

from __future__ import annotations

from stagebeam.engine.branch import Branch
from stagebeam.engine.judge.tournament import play
from stagebeam.engine.search.context import SearchContext, Trunk
from stagebeam.engine.search.requests import Policy, Sample, Until

SENTENCE_END = "."


def sentence_beam(context: SearchContext) -> Policy:
    """Grow the answer sentence by sentence; stages of the result are "sentence 1", "sentence 2"..."""
    trunk = Trunk()
    close_tag = context.plan.close_tags[-1]
    for round in range(context.search.max_rounds):
        name = f"sentence {round + 1}"
        sentences: list[Branch] = yield Sample(
            prefix=trunk.branch,
            n=context.search.beam_size,
            until=Until(goals=(SENTENCE_END, close_tag)),
            sampling=context.sampling,
            name=name,
            stage=0,
            round=round,
        )
        is_last = [close_tag in trunk.text + sentence.text for sentence in sentences]
        contest = context.contest(
            name,
            context.plan.prompts.sentence_criterion,
            hints=(("answer so far", trunk.text),) if trunk.text else (),
            round=round,
        )
        is_well_formed = [
            sentence.is_well_formed or closes
            for sentence, closes in zip(sentences, is_last, strict=True)
        ]
        winner, matches = yield from play(contest, sentences, is_well_formed)
        yield from trunk.commit(name, sentences, winner, matches)
        if is_last[winner]:
            return trunk.result("tag")
        if not is_well_formed[winner]:
            return trunk.result(trunk.branch.finish_reason)
    return trunk.result("length")
