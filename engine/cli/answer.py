"""`stagebeam answer`: one question about one image, answered on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from stagebeam.engine.cli.options import add_model_options, add_vote_weight, make_engine
from stagebeam.engine.cli.progress import ProgressLine
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.outputs import Answer
from stagebeam.engine.params import (
    JudgeMode,
    JudgeParams,
    Schedule,
    SearchParams,
    Strategy,
    Tournament,
)
from stagebeam.engine.stages import StagePlan

# The published script's names for its searches.
PUBLISHED_TYPES: dict[str, Strategy] = {
    "best_of_N": "best_of_n",
    "sentence": "sentence_beam",
    "stage": "stage_beam",
}
_SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")


def add_answer_parser(commands: Any) -> None:
    """`stagebeam answer`: one question, one answer."""
    parser = commands.add_parser("answer", help="answer a question about an image")
    parser.add_argument("question", nargs="?", help="the question (or --prompt)")
    parser.add_argument("--prompt", help="the question")
    parser.add_argument("--image", "--image_path", help="image file; leave out for a text question")
    add_model_options(parser)
    search = parser.add_argument_group("search")
    search.add_argument("--strategy", choices=[s for s in get_args(Strategy) if s != "swires"])
    search.add_argument("--type", choices=list(PUBLISHED_TYPES), help="the published script's name")
    search.add_argument("--beam-size", "--beam_size", type=int, default=SearchParams().beam_size)
    search.add_argument("--plan", help="stage plan as a JSON file")
    sampling = parser.add_argument_group("sampling (defaults: the checkpoint's)")
    for field in ("temperature", "top_p", "min_p"):
        sampling.add_argument(f"--{field.replace('_', '-')}", type=float)
    for field in ("top_k", "max_tokens", "seed"):
        sampling.add_argument(f"--{field.replace('_', '-')}", type=int)
    judge = parser.add_argument_group("judging")
    judge.add_argument("--judge", choices=get_args(JudgeMode), default="logits", help="mode")
    judge.add_argument("--tournament", choices=get_args(Tournament), default="paper")
    judge.add_argument("--schedule", choices=get_args(Schedule), default="auto")
    add_vote_weight(judge)
    judge.add_argument("--gate", action=argparse.BooleanOptionalAction, default=None)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    output.add_argument(
        "--show-stages", action="store_true", help="print every stage, not only the reply"
    )
    output.add_argument("--html", metavar="FILE", help="write the search tree as one HTML page")
    parser.set_defaults(run=run_answer)


def run_answer(options: argparse.Namespace) -> int:
    """Answer the question; the conclusion (or --show-stages, or --json) goes to stdout."""
    question = options.question or options.prompt
    if not question or (options.question and options.prompt):
        raise InvalidInputError("give the question once: as an argument or with --prompt")
    strategy: Strategy = options.strategy or PUBLISHED_TYPES[options.type or "stage"]
    search = SearchParams(strategy=strategy, beam_size=options.beam_size)
    judge = JudgeParams(
        mode=options.judge,
        tournament=options.tournament,
        schedule=options.schedule,
        gate=options.gate,
        vote_weight=options.vote_weight,
    )
    plan = StagePlan.from_json(options.plan) if options.plan else None
    if options.html and not Path(options.html).absolute().parent.is_dir():
        raise InvalidInputError(f"--html {options.html}: its folder does not exist; make it first")
    with make_engine(options) as engine:
        given = {name: getattr(options, name) for name in _SAMPLING_OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        sampling = replace(engine.default_sampling, **given)
        handle = engine.submit(
            question, options.image, search=search, sampling=sampling, judge=judge, plan=plan
        )
        try:
            with ProgressLine(sys.stderr) as progress:
                for event in handle.events():
                    progress.show(event)
        except KeyboardInterrupt:
            handle.cancel()
            raise
        answer: Answer = handle.result()
    if options.html:
        answer.to_html(options.html)
        print(f"wrote {options.html}", file=sys.stderr)
    if options.json:
        print(json.dumps(answer.to_dict(), ensure_ascii=False, indent=2))
    elif options.show_stages:
        print(_stages_text(answer))
    else:
        print(answer.conclusion)
    if answer.finish_reason != "tag":
        print(f"the answer is not complete: {_why(answer)}", file=sys.stderr)
    return 0


def _stages_text(answer: Answer) -> str:
    parts = []
    for stage in answer.stages:
        judged = f"{len(stage.candidates)} candidates, {len(stage.matches)} matches"
        parts.append(
            f"{stage.name.upper()} ({judged}, candidate {stage.winner + 1} won)\n{stage.text}"
        )
    return "\n\n".join(parts)


def _why(answer: Answer) -> str:
    name = answer.stages[-1].name if answer.stages else "the first stage"
    reasons = {
        "length": "ran out of tokens (raise --max-tokens)",
        "eos": "ended before its closing tag",
        "wrong_tag": "was closed by another stage's tag",
        "aborted": "was stopped",
    }
    return f"{name} {reasons.get(answer.finish_reason, answer.finish_reason)}"
