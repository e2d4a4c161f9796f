"""What is measured while training: losses by source, tokens a second, gradient norm, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stagebeam.training.world import World


class Meter:
    """Losses and tokens since the last line of metrics; sums stay on the device until taken."""

    def __init__(self, source_names: Sequence[str], world: World) -> None:
        self._names = list(source_names)
        self._world = world
        self.grad_norm: Tensor | None = None
        self._reset()

    def add_loss(self, source: int, loss: Tensor, weight: float) -> None:
        """This rank's summed loss of one micro-batch of `source`, and its labels' weight."""
        self._sums[source, 0] += loss
        self._sums[source, 1] += weight

    def add_tokens(self, num_tokens: int) -> None:
        """Tokens of all ranks, padding excluded."""
        self._num_tokens += num_tokens

    def skip_time(self, seconds: float) -> None:
        """Leave out time that was spent on something else, such as saving."""
        self._start += seconds

    def take(self) -> dict[str, Any]:
        """The numbers over all ranks, then start afresh; every rank must call it."""
        sums = self._world.sum(self._sums).tolist()
        seconds = max(time.perf_counter() - self._start, 1e-9)
        total, weight = (sum(column) for column in zip(*sums))
        values: dict[str, Any] = {"loss": total / (weight or 1.0)}
        if len(self._names) > 1:
            for name, (loss, part) in zip(self._names, sums):
                if part:
                    values[f"loss_{name}"] = loss / part
        if self.grad_norm is not None:
            values["grad_norm"] = self.grad_norm.item()
            self.grad_norm = None
        values |= {"tokens_per_second": self._num_tokens / seconds, "seconds": seconds}
        self._reset()
        return values

    def _reset(self) -> None:
        # [num_sources, 2]: summed loss, the labels' weight
        shape = (len(self._names), 2)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=self._world.device)
        self._num_tokens = 0
        self._start = time.perf_counter()


def clip_gradients(module: nn.Module, world: World, max_norm: float | None) -> Tensor:
    """The gradient's norm over all parameters and ranks; scales gradients down to `max_norm`.

    FSDP shards every parameter, so the squares of the local norms add up over ranks.
    """
    found = [p.grad for p in module.parameters() if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in found]
    local = [g for g in local if g.numel()]
    squares = torch.zeros((), device=world.device)
    if local:
        squares = torch.stack(torch._foreach_norm(local)).square().sum()
    norm = world.sum(squares).sqrt()
    if max_norm is not None and local:
        torch._foreach_mul_(local, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


def memory_gib(device: torch.device) -> float:
    """The most memory used so far: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
