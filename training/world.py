"""The ranks of a run: one process, or as many as torchrun started.

Opens the process group and offers the few collectives the trainer uses; with one process each of
them is the identity.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """This process's place; `is_sharded` says whether the model is wrapped by FSDP."""

    rank: int
    size: int
    device: torch.device
    is_sharded: bool

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` in rank order, on every rank; small picklable values only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's `value` on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def num_ranks() -> int:
    """How many ranks torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def open_world(timeout_minutes: float, *, needs_fsdp: bool = False) -> Iterator[World]:
    """Join the run that torchrun's environment describes; without one, be the only rank.

    On a CPU a single process trains the plain model unless `needs_fsdp` (mixed precision is FSDP's);
    everything else is sharded by FSDP.
    """
    size = num_ranks()
    rank = int(os.environ.get("RANK", "0"))
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    is_sharded = launched or needs_fsdp or device.type == "cuda"
    opened = is_sharded and not dist.is_initialized()
    if opened:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        store = None if launched else dist.HashStore()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield World(rank, size, device, is_sharded)
    finally:
        if opened and size == 1:
            dist.destroy_process_group()
        elif opened:
            # Opened again on torchrun's store, a group may wait for ever for the keys of the one
            # before (seen with gloo): one group serves all runs of a process.
            atexit.register(dist.destroy_process_group)


def made_once(path: Path, make: Callable[[], object], timeout_minutes: float = 60.0) -> None:
    """Let one rank make `path` if it is not there; the others wait."""
    with open_world(timeout_minutes) as world:
        if world.is_first and not path.exists():
            make()
        world.barrier()
