"""Arguments that several commands share: which model to load and how."""

from __future__ import annotations

import argparse
from typing import Any

from stagebeam.engine.engine import Engine
from stagebeam.engine.params import JudgeParams


def add_vote_weight(parser: argparse._ActionsContainer) -> None:
    """`JudgeParams.vote_weight`."""
    parser.add_argument(
        "--vote-weight",
        type=float,
        default=JudgeParams().vote_weight,
        help="how much it counts that a candidate was sampled more often (default: 0, as published)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What every command that loads a model takes."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        "--model_name_or_path",
        metavar="PATH",
        help="HF folder or hub id (default: the bundled checkpoint)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    group.add_argument(
        "--dtype", default="auto", help="weights: auto, float32, bfloat16, float16, int8, int4"
    )
    group.add_argument(
        "--kv-cache-dtype", default="auto", help="KV cache: auto, float32, bfloat16, int8"
    )
    group.add_argument("--backend", default="auto", help="kernels: auto or one that doctor lists")
    group.add_argument("--kv-cache-bytes", type=int, help="size of the paged KV cache")
    group.add_argument("--threads", type=int, help="threads of the native CPU backend")
    group.add_argument("--max-model-len", type=int, help="longest sequence in tokens")


def engine_options(options: argparse.Namespace, **overrides: Any) -> dict[str, Any]:
    """The arguments of `Engine` that `add_model_options` describes."""
    return {
        "path": options.model,
        "device": options.device,
        "dtype": options.dtype,
        "kv_cache_dtype": options.kv_cache_dtype,
        "num_threads": options.threads,
        "backend": options.backend,
        "kv_cache_bytes": options.kv_cache_bytes,
        "max_model_len": options.max_model_len,
        **overrides,
    }


def make_engine(options: argparse.Namespace, **overrides: Any) -> Engine:
    """That engine."""
    return Engine(**engine_options(options, **overrides))
