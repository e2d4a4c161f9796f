"""`stagebeam evaluate`: how often answers are right, search by search."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from stagebeam.benchmarks.accuracy.asking import Answering
from stagebeam.benchmarks.accuracy.contenders import parse_contenders
from stagebeam.benchmarks.accuracy.questions import EASY_VQA, SHAPES
from stagebeam.benchmarks.accuracy.run import (
    MAX_VALIDATION,
    PLOT,
    RESULTS,
    TABLE,
    Evaluation,
    evaluate,
)
from stagebeam.benchmarks.accuracy.table import to_markdown
from stagebeam.benchmarks.accuracy.temperature import parse_range
from stagebeam.engine.cli.options import (
    add_model_options,
    add_vote_weight,
    engine_options,
    make_engine,
)
from stagebeam.engine.cli.ray_options import add_ray_options, cluster, worker_resources
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import MAX_SEED, JudgeMode, JudgeParams

logger = logging.getLogger(__name__)

_RECORDED = Path(__file__).resolve().parents[1] / "results"  # of a checkout; not installed
NONE = "none"
_SHAPES_STRATEGIES = "greedy,stage_beam:1,2,3,4,8,best_of_n:1,10,sentence_beam:2"
_ROWS_AT_ONCE = 128  # of a decode step, where no search is wider; the fastest on two CPU cores
_SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "max_tokens")


def add_evaluate_parser(commands: Any) -> None:
    """`stagebeam evaluate`: searches on held-out questions."""
    parser = commands.add_parser(
        "evaluate", help="measure accuracy against search and beam size on held-out questions"
    )
    parser.add_argument(
        "data", help=f"{SHAPES}, {EASY_VQA}, or a folder in the LLaVA-CoT-100k layout"
    )
    parser.add_argument(
        "--strategies",
        metavar="LIST",
        help=f"searches and beam sizes (default: {_SHAPES_STRATEGIES} on shapes, else greedy); "
        f"{NONE} only judges pairs or finds the temperature",
    )
    parser.add_argument("--num-questions", type=int, help="default: 1000 of shapes, else all")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--seed", type=int, default=7, help="of questions drawn and of sampling")
    parser.add_argument(
        "--temperature", type=float, help="default: the checkpoint's, or the one found"
    )
    parser.add_argument(
        "--find-temperature",
        metavar="LOW:HIGH",
        help="evaluate (also) where one answer is wrong on 15 to 25 %% of validation questions "
        f"(at most {MAX_VALIDATION} of them)",
    )
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--max-tokens", type=int, help="per stage")
    parser.add_argument("--judge", choices=get_args(JudgeMode), default="logits", help="mode")
    add_vote_weight(parser)
    parser.add_argument(
        "--judge-pairs", type=int, default=0, metavar="N", help="judge N test pairs"
    )
    add_model_options(parser)
    many = parser.add_argument_group("many engines, by Ray Data")
    many.add_argument("--ray", action="store_true", help="put the questions to engines on Ray")
    add_ray_options(many, name="engines")
    parser.add_argument(
        "--output", metavar="DIR", help="results, table, plot and answers (benchmarks/results/...)"
    )
    parser.add_argument("--restart", action="store_true", help="ask again what DIR has answers to")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Run the evaluation; the table (or --json) goes to stdout, everything to --output."""
    listed = options.strategies or (_SHAPES_STRATEGIES if options.data == SHAPES else "greedy")
    contenders = [] if listed == NONE else parse_contenders(listed)
    if not contenders and not options.judge_pairs and not options.find_temperature:
        raise InvalidInputError(
            f"--strategies {NONE} leaves nothing to do: give --judge-pairs or --find-temperature"
        )
    if options.data not in (SHAPES, EASY_VQA) and not Path(options.data).exists():
        raise InvalidInputError(
            f"expected {SHAPES}, {EASY_VQA} or a folder with train.jsonl, got {options.data!r}"
        )
    if not 0 <= options.seed <= MAX_SEED:
        raise InvalidInputError(f"--seed must be in 0 .. 2**64 - 1, got {options.seed}")
    ends = parse_range(options.find_temperature) if options.find_temperature else None
    widest = max((contender.beam_size for contender in contenders), default=1)
    with _engine(options, max_branches=max(_ROWS_AT_ONCE, widest)) as engine:
        given = {name: getattr(options, name) for name in _SAMPLING_OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        evaluation = Evaluation(
            data=options.data,
            split=options.split,
            seed=options.seed,
            num_questions=options.num_questions,
            contenders=contenders,
            sampling=replace(engine.default_sampling, **given),
            judge=JudgeParams(mode=options.judge, vote_weight=options.vote_weight),
            temperature_range=ends,
            has_own_temperature=ends is None or options.temperature is not None,
            num_judge_pairs=options.judge_pairs,
        )
        output = Path(options.output) if options.output else _default_output(evaluation)
        try:
            document = evaluate(engine, evaluation, output, is_restart=options.restart)
        except OSError as error:
            raise InvalidInputError(f"--output {output}: cannot write there: {error}") from error
    written = [RESULTS, TABLE, *_draw(document, output / PLOT)]
    print(f"wrote {', '.join(written)} in {output}", file=sys.stderr)
    print(json.dumps(document, ensure_ascii=False) if options.json else to_markdown(document))
    return 0


@contextmanager
def _engine(options: argparse.Namespace, max_branches: int) -> Iterator[Answering]:
    """What answers: an engine here, or those on Ray."""
    if not options.ray:
        with make_engine(options, max_branches=max_branches) as engine:
            yield engine
        return
    if options.judge_pairs:
        raise InvalidInputError("--judge-pairs is for one engine: run it without --ray")
    with cluster(options.ray_address):
        from stagebeam.benchmarks.accuracy.ray_engines import RayEngines

        yield RayEngines(
            engine_options(options, max_branches=max_branches),
            num_engines=options.engines,
            resources=worker_resources(options),
        )


def _default_output(evaluation: Evaluation) -> Path:
    """A folder whose name tells the settings, so that a short run never replaces a recorded one."""
    count = "all" if evaluation.num_questions is None else evaluation.num_questions
    measured = "accuracy" if evaluation.contenders else "judge"
    name = (
        f"{measured}-{Path(evaluation.data).stem}-{evaluation.split}-{count}-seed{evaluation.seed}"
    )
    if evaluation.has_own_temperature and not _is_greedy(evaluation.contenders):
        name += f"-t{evaluation.sampling.temperature:g}"
    if evaluation.temperature_range is not None:
        name += "-found"
    return (_RECORDED if _RECORDED.is_dir() else Path("results")) / name


def _is_greedy(contenders: Any) -> bool:
    return all(contender.strategy == "greedy" for contender in contenders)


def _draw(document: dict[str, Any], path: Path) -> list[str]:
    """Draw the plot where there is something to draw and matplotlib is installed."""
    if not document["rows"]:
        return []
    try:
        plot = import_module("stagebeam.benchmarks.accuracy.plot")  # slow to load, and optional
    except ModuleNotFoundError as error:
        logger.warning("no plot: %s; pip install 'stagebeam[train]'", error)
        return []
    plot.draw_plot(document, path)
    return [path.name]
