"""`stagebeam annotate`: write a data set with four-stage answers in the LLaVA-CoT-100k layout.

`shapes` draws images and questions by seed; `easy-vqa` annotates the installed set's training
questions by rule. `stagebeam train DIR` reads the result.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stagebeam.engine.cli.ray_options import add_ray_options, cluster
from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.dataset_writer import NewRow, check_output, write_dataset
from stagebeam.training.easy_vqa import annotated_rows, read_questions
from stagebeam.training.shapes.dataset import TASKS, row_maker, shapes_rows
from stagebeam.training.shapes.scene import SPLITS

logger = logging.getLogger(__name__)

SHAPES, EASY_VQA = "shapes", "easy-vqa"
EXIT_FAILED = 1
_DEFAULT_SHAPES = 1000
_NUMBERS_AT_ONCE = 100  # of a worker on Ray: some seconds of drawing


def add_annotate_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the `annotate` command to the command line's subparsers; `run` serves it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "annotate",
        help="write a data set with four-stage answers: drawn shapes, or easy-VQA",
        description=__doc__,
    )
    parser.add_argument("data", choices=(SHAPES, EASY_VQA))
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--num-examples",
        type=int,
        metavar="N",
        help=f"rows of each task (default: {_DEFAULT_SHAPES} of shapes, all of easy-vqa)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default="train", help="easy-vqa: train only")
    parser.add_argument(
        "--tasks",
        default="answer",
        metavar="LIST",
        help=f"of shapes, comma-separated: {', '.join(TASKS)} (default: answer)",
    )
    many = parser.add_argument_group("many processes, by Ray Data")
    many.add_argument("--ray", action="store_true", help="draw shapes in workers on Ray")
    add_ray_options(many, name="workers", what="worker", can_use_gpu=False)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve `stagebeam annotate`; returns the exit status. Faults of the user's are ValueErrors."""
    if args.num_examples is not None and args.num_examples < 1:
        raise InvalidInputError(f"--num-examples must be >= 1, got {args.num_examples}")
    check_output(Path(args.output))
    started = time.perf_counter()
    record: dict[str, Any] = {"data": args.data, "split": args.split, "seed": args.seed}
    if args.data == SHAPES:
        tasks = [task.strip() for task in args.tasks.split(",")]
        count = _DEFAULT_SHAPES if args.num_examples is None else args.num_examples
        if args.ray:
            rows = _rows_on_ray(args, tasks, count)
        else:
            rows = shapes_rows(tasks, seed=args.seed, split=args.split, num_examples=count)
        total = count * len(tasks)
        record["tasks"] = tasks
    else:
        chosen, num_dropped = _easy_rows(args)
        rows, total = iter(chosen), len(chosen)
        record["num_dropped"] = num_dropped
    bar = tqdm(rows, total=total, unit="row", disable=not sys.stderr.isatty())
    try:
        written = write_dataset(args.output, bar, record)
    except OSError as error:
        print(f"stagebeam annotate: cannot write {args.output}: {error}", file=sys.stderr)
        return EXIT_FAILED
    seconds = time.perf_counter() - started
    if args.json:
        counts = {"num_rows": written.num_rows, "num_images": written.num_images}
        print(json.dumps({"output": args.output, **record, **counts, "seconds": seconds}))
    else:
        print(
            f"{written.num_rows} rows, {written.num_images} images in {args.output}, {seconds:.1f} s"
        )
    return 0


def _rows_on_ray(args: argparse.Namespace, tasks: list[str], count: int) -> Iterator[NewRow]:
    """The rows of `shapes_rows`, drawn elsewhere."""
    row_maker(tasks, seed=args.seed, split=args.split)  # refuses wrong ones before Ray starts
    return _drawn_on_ray(args, tasks, count)


def _drawn_on_ray(args: argparse.Namespace, tasks: list[str], count: int) -> Iterator[NewRow]:
    with cluster(args.ray_address):
        from stagebeam.engine.cli.ray_rows import check_room, map_rows

        resources = {"num_cpus": args.cpus_each, "num_gpus": 0.0}
        check_room(args.workers, resources)
        for rows in map_rows(
            partial(_drawing, tasks, args.seed, args.split),
            range(count),
            num_workers=args.workers,
            resources=resources,
            rows_at_once=_NUMBERS_AT_ONCE,
        ):
            yield from rows


def _drawing(tasks: list[str], seed: int, split: str) -> Callable[[list[int]], list[list[NewRow]]]:
    rows_of = row_maker(tasks, seed=seed, split=split)
    return lambda numbers: [rows_of(number) for number in numbers]


def _easy_rows(args: argparse.Namespace) -> tuple[list[NewRow], int]:
    """Rows of easy-VQA's training questions, and how many no annotation agrees with."""
    if args.split != "train":
        raise InvalidInputError(
            f"easy-vqa has no {args.split} split to annotate: its official test set is for "
            "`stagebeam evaluate easy-vqa` and never trained on; use --split train"
        )
    if args.ray:
        raise InvalidInputError("--ray draws shapes; easy-vqa takes seconds without it")
    if args.tasks != "answer":
        raise InvalidInputError(f"easy-vqa has the task answer only, got --tasks {args.tasks}")
    questions = read_questions("train")
    rows = list(_annotate_easy(questions))
    num_dropped = len(questions) - len(rows)
    if num_dropped:
        logger.warning(
            "dropped %d of %d questions: no annotation agrees", num_dropped, len(questions)
        )
    count = args.num_examples
    if count is None:
        return rows, num_dropped
    if count > len(rows):
        raise InvalidInputError(
            f"--num-examples {count} is more than the {len(rows)} annotated questions there are"
        )
    chosen = random.Random(args.seed).sample(range(len(rows)), count)
    return [rows[index] for index in sorted(chosen)], num_dropped


def _annotate_easy(questions: Any) -> Iterator[NewRow]:
    for question, answer in annotated_rows(questions):
        yield NewRow(
            identity=f"easy-vqa/train/{question.number}",
            user=question.text,
            reply=answer.text(),
            image_name=f"images/{question.image:05d}.png",
            image=question.path,
        )
