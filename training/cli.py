"""`stagebeam train`: fine-tune an HF Mllama or Llama folder on a LLaVA-CoT-100k-layout data set.

The defaults are the published recipe. Runs as one process, or as many as torchrun starts:
`torchrun --nproc-per-node 8 -m stagebeam.cli train DATA --model MODEL --output RUN`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, get_args

from stagebeam.engine.errors import CheckpointError, InvalidInputError
from stagebeam.training.checkpoint import CheckpointWriteError
from stagebeam.training.config import Phase, Precision, Schedule, ScheduleKind, Source, TrainConfig
from stagebeam.training.data import open_conversations
from stagebeam.training.fsdp import read_model_config
from stagebeam.training.trainer import Trainer

logger = logging.getLogger(__name__)

EXIT_USAGE = 2
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
    data.add_argument("data", help="folder with train.jsonl and its images, or a .jsonl file")
    data.add_argument("--model", required=True, help="HF folder to start from")
    data.add_argument("--output", required=True, help="folder for checkpoints, metrics and exports")
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
        "--resume", default="auto", help="auto, never, or the path of a checkpoint folder"
    )
    run_group.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Serve `stagebeam train`; returns the exit status."""
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if is_first else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return _train(args, is_first)
    except (InvalidInputError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (CheckpointWriteError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _train(args: argparse.Namespace, is_first: bool) -> int:
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
        log_interval=args.log_interval,
        num_workers=args.num_workers,
    )
    dataset, encoder = open_conversations(
        args.data,
        args.model,
        read_model_config(args.model),
        add_bos=_CHOICES[args.add_bos],
        max_length=args.max_length,
    )
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
    logger.info("%d rows in %s", len(dataset), dataset.file)
    trainer = Trainer(
        args.model, args.output, config, [phase], metadata={"add_bos": encoder.add_bos}
    )
    progress = trainer.train(resume=args.resume)
    is_finished = progress.phase == 1
    if is_first:
        final = Path(args.output) / "final"
        result = {
            "steps": progress.step,
            "num_tokens": progress.num_tokens,
            "seconds": progress.seconds,
            "is_finished": is_finished,
            "model": str(final) if is_finished else None,
        }
        print(json.dumps(result) if args.json else _summary(result))
    return 0 if is_finished else EXIT_STOPPED


def _summary(result: dict[str, Any]) -> str:
    done = f"{result['steps']} steps, {result['num_tokens']} tokens, {result['seconds']:.0f} s"
    if not result["is_finished"]:
        return f"stopped after {done}; the same command goes on"
    return f"{done}; the model is in {result['model']}"
