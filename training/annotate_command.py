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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.dataset_writer import NewRow, check_output, write_dataset
from stagebeam.training.easy_vqa import annotated_rows, read_questions
from stagebeam.training.shapes.dataset import TASKS, shapes_rows
from stagebeam.training.shapes.scene import SPLITS

logger = logging.getLogger(__name__)

SHAPES, EASY_VQA = "shapes", "easy-vqa"
EXIT_FAILED = 1
_DEFAULT_SHAPES = 1000


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


def _easy_rows(args: argparse.Namespace) -> tuple[list[NewRow], int]:
    """Rows of easy-VQA's training questions, and how many no annotation agrees with."""
    if args.split != "train":
        raise InvalidInputError(
            f"easy-vqa has no {args.split} split to annotate: its official test set is for "
            "`stagebeam evaluate easy-vqa` and never trained on; use --split train"
        )
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
