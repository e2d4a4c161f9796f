"""`stagebeam train`: fine-tune an HF Mllama or Llama folder on a LLaVA-CoT-100k-layout data set.

The defaults are the published recipe. Runs as one process, or as many as torchrun starts:
`torchrun --nproc-per-node 8 -m stagebeam.cli train DATA --model MODEL --output RUN`.
`stagebeam train shapes` trains the bundled checkpoint from nothing by its own recipe, and
`stagebeam train curves LOG` draws a run's metrics.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from transformers.utils.logging import disable_progress_bar

from stagebeam.engine.checkpoints import find_checkpoint
from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.checkpoint import CheckpointWriteError
from stagebeam.training.config import Phase, Precision, Schedule, ScheduleKind, Source, TrainConfig
from stagebeam.training.data import open_conversations
from stagebeam.training.evaluation import GenerationCheck
from stagebeam.training.progress import Progress
from stagebeam.training.shapes.recipe import train_shapes
from stagebeam.training.trainer import Trainer

logger = logging.getLogger(__name__)

SHAPES, CURVES = "shapes", "curves"
EXIT_FAILED = 1
EXIT_STOPPED = 130
_CHOICES: dict[str, bool | None] = {"auto": None, "yes": True, "no": False}


def add_train_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the `train` command to the command line's subparsers; `run` serves it."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="fine-tune an HF Mllama or Llama folder on staged answers",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_train_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `stagebeam train DATA_DIR`."""
    data = parser.add_argument_group("data and model")
    data.add_argument(
        "data",
        help="folder with train.jsonl and its images, or a .jsonl file; `shapes` trains the bundled "
        "checkpoint, whose recipe fixes the rest; `curves` draws LOG",
    )
    data.add_argument(
        "log", nargs="?", metavar="LOG", help="of `curves`: a metrics.jsonl or a run's folder"
    )
    data.add_argument("--model", help="HF folder, or hub id, to start from")
    data.add_argument(
        "--output", help="folder for checkpoints, metrics and exports; of `curves`, the PNG"
    )
    data.add_argument("--max-length", type=int, help="cut longer conversations (the model's limit)")
    data.add_argument(
        "--add-bos",
        choices=_CHOICES,
        default="auto",
        help="one more BOS before the chat template's",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=float, default=3.0)
    recipe.add_argument("--steps", type=int, help="optimiser steps, instead of epochs")
    recipe.add_argument("--batch-size", type=int, default=4, help="rows per rank and micro-batch")
    recipe.add_argument("--accumulation", type=int, default=1, help="micro-batches per step")
    recipe.add_argument("--learning-rate", type=float, default=1e-5)
    recipe.add_argument("--schedule", choices=get_args(ScheduleKind), default="step")
    recipe.add_argument("--decay", type=float, default=0.85, help="of schedule step, per epoch")
    recipe.add_argument("--warmup-steps", type=int, default=0)
    recipe.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.999))
    recipe.add_argument("--eps", type=float, default=1e-8)
    recipe.add_argument("--weight-decay", type=float, default=0.0)
    recipe.add_argument("--max-grad-norm", type=float, help="clip gradients (off)")
    recipe.add_argument(
        "--bucket-batches", type=int, default=0, help="sort by length within so many"
    )
    recipe.add_argument("--seed", type=int, default=42)
    run_group = parser.add_argument_group("run")
    run_group.add_argument("--precision", choices=get_args(Precision), default="auto")
    run_group.add_argument("--activation-checkpointing", action="store_true")
    run_group.add_argument(
        "--save-interval", type=int, default=500, help="steps; 0 only at the end"
    )
    run_group.add_argument("--keep-last", type=int, default=2, help="checkpoints to keep")
    run_group.add_argument("--log-interval", type=int, default=1, help="steps per line of metrics")
    run_group.add_argument(
        "--num-workers", type=int, default=2, help="threads that prepare batches"
    )
    run_group.add_argument(
        "--threads", type=int, help="CPU threads of each rank (PyTorch's choice)"
    )
    run_group.add_argument(
        "--resume", default="auto", help="auto, never, or the path of a checkpoint folder"
    )
    run_group.add_argument(
        "--eval-interval", type=int, default=0, help="steps between evaluations; 0 never evaluates"
    )
    run_group.add_argument(
        "--eval-data", help="held-out set in the same layout, answered by the engine"
    )
    run_group.add_argument("--eval-questions", type=int, default=32)
    run_group.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Serve `stagebeam train`; returns the exit status. Faults of the user's are ValueErrors."""
    is_first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("stagebeam").setLevel(logging.INFO if is_first else logging.ERROR)
    disable_progress_bar()  # of transformers, at every export
    if args.data == CURVES:
        return _draw_curves(args)
    if args.log is not None:
        raise InvalidInputError(f"`train {args.data}` takes no second argument, got {args.log!r}")
    if args.threads is not None:
        if args.threads < 1:
            raise InvalidInputError(f"--threads must be >= 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    try:
        if args.data == SHAPES:
            progress, final = _train_shapes(args)
        else:
            progress, final = _train(args)
    except (CheckpointWriteError, FloatingPointError, OSError) as error:
        print(f"stagebeam train: {error}", file=sys.stderr)
        return EXIT_FAILED
    if is_first:
        result = {
            "steps": progress.step,
            "num_tokens": progress.num_tokens,
            "seconds": progress.seconds,
            "is_finished": progress.is_finished,
            "model": str(final) if progress.is_finished else None,
        }
        print(json.dumps(result) if args.json else _summary(result))
    return 0 if progress.is_finished else EXIT_STOPPED


def _refuse_others(args: argparse.Namespace, served: tuple[str, ...]) -> None:
    """Refuse options that were given and are not among `served`, rather than ignore them."""
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    for name, default in vars(parser.parse_args([args.data])).items():
        if name not in (*served, "data", "log", "json") and getattr(args, name) != default:
            raise InvalidInputError(
                f"`train {args.data}` takes no --{name.replace('_', '-')}; it takes "
                + ", ".join(f"--{one}" for one in (*served, "json"))
            )


def _draw_curves(args: argparse.Namespace) -> int:
    _refuse_others(args, ("output",))
    if args.log is None:
        raise InvalidInputError(f"`train {CURVES}` needs a log: a metrics.jsonl or a run's folder")
    try:
        curves = import_module("stagebeam.training.curves")  # slow to load, and optional
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"{error}; run: pip install 'stagebeam[train]'") from error
    log = curves.read_log(args.log)
    path = Path(args.log)
    output = Path(args.output or (path if path.is_dir() else path.parent) / "curves.png")
    try:
        curves.draw_curves(log, output, title=str(args.log))
    except OSError as error:
        print(f"stagebeam train: cannot write {output}: {error}", file=sys.stderr)
        return EXIT_FAILED
    last = {series.name: series.last for series in log.series}
    print(json.dumps({"output": str(output), "last": last}) if args.json else f"wrote {output}")
    return 0


def _train_shapes(args: argparse.Namespace) -> tuple[Progress, Path]:
    _refuse_others(args, ("output", "threads", "model"))
    output = Path(args.output or Path("runs") / SHAPES)
    model = find_checkpoint(args.model) if args.model is not None else None
    return train_shapes(output, model=model), output / "final"


def _train(args: argparse.Namespace) -> tuple[Progress, Path]:
    for name in ("model", "output"):
        if getattr(args, name) is None:
            raise InvalidInputError(f"`train {args.data}` needs --{name}")
    if bool(args.eval_interval) != bool(args.eval_data):
        raise InvalidInputError("evaluation needs both --eval-interval and --eval-data")
    config = TrainConfig(
        seed=args.seed,
        betas=tuple(args.betas),
        eps=args.eps,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        precision=args.precision,
        activation_checkpointing=args.activation_checkpointing,
        save_interval=args.save_interval,
        keep_last=args.keep_last,
        eval_interval=args.eval_interval,
        log_interval=args.log_interval,
        num_workers=args.num_workers,
    )
    opening = {"add_bos": _CHOICES[args.add_bos], "max_length": args.max_length}
    model_dir = find_checkpoint(args.model)
    dataset, encoder = open_conversations(args.data, model_dir, **opening)
    logger.info("%d rows in %s", len(dataset), dataset.file)
    phase = Phase(
        name="sft",
        sources=(Source(name=dataset.root.name or "data", dataset=dataset),),
        steps=args.steps,
        epochs=None if args.steps is not None else args.epochs,
        batch_size=args.batch_size,
        accumulation=args.accumulation,
        learning_rate=args.learning_rate,
        schedule=Schedule(kind=args.schedule, decay=args.decay, warmup_steps=args.warmup_steps),
        bucket_batches=args.bucket_batches,
    )
    eval_fn = None
    if args.eval_data:
        held_out, _ = open_conversations(args.eval_data, model_dir, **opening)
        eval_fn = GenerationCheck(held_out, num_questions=args.eval_questions)
    trainer = Trainer(
        model_dir,
        args.output,
        config,
        [phase],
        eval_fn=eval_fn,
        metadata={"add_bos": encoder.add_bos},
    )
    return trainer.train(resume=args.resume), Path(args.output) / "final"


def _summary(result: dict[str, Any]) -> str:
    done = f"{result['steps']} steps, {result['num_tokens']} tokens, {result['seconds']:.0f} s"
    if not result["is_finished"]:
        return f"stopped after {done}; the same command goes on"
    return f"{done}; the model is in {result['model']}"
