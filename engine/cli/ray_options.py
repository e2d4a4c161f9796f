"""Arguments of the commands that can run on Ray, and the connection to it.

Ray is the extra `ray`: it is imported where a command asks for it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stagebeam.engine.errors import InvalidInputError


def add_ray_options(
    group: Any, *, name: str, what: str = "engine", can_use_gpu: bool = True
) -> None:
    """`--ray-address`, how many workers (`--NAME`), and what each of them takes.

    what: a worker's name in words
    """
    group.add_argument(f"--{name}", type=int, default=2, help=f"{what}s on Ray")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="a running Ray (default: $RAY_ADDRESS, else own)"
    )
    group.add_argument(
        "--cpus-each", type=float, default=1.0, help=f"CPU cores of each {what} on Ray"
    )
    if can_use_gpu:
        group.add_argument(
            "--gpus-each",
            type=float,
            help=f"GPUs of each {what} (default: 1 where --device is a GPU)",
        )


def worker_resources(options: argparse.Namespace) -> dict[str, float]:
    """What Ray sets aside for one engine."""
    on_gpu = options.device.startswith("cuda") or (
        options.device == "auto" and torch.cuda.is_available()
    )
    num_gpus = float(on_gpu) if options.gpus_each is None else options.gpus_each
    return {"num_cpus": options.cpus_each, "num_gpus": num_gpus}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A connection to Ray; one that was made here ends with it, and so does a Ray started here."""
    try:
        import ray
        import ray.data
        import ray.serve
    except ImportError as error:
        raise InvalidInputError(
            f"--ray needs the package {error.name!r}: pip install 'stagebeam[ray]'"
        ) from error
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address,
            include_dashboard=False if address is None else None,
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise InvalidInputError(f"no Ray answers at {address!r}: {error}") from error
    try:
        yield
    finally:
        if address is None:
            ray.serve.shutdown()
        ray.shutdown()
