"""What a training run is made of: optimiser, schedule, phases and the run's own settings.

Frozen and validated once; the defaults are the published recipe (lr 1e-5, three
epochs, AdamW without decay, step decay per epoch, no warm-up, no clipping, seed 42).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.examples import ExampleDataset

ScheduleKind = Literal["constant", "cosine", "step"]
Precision = Literal["auto", "float32", "bfloat16", "autocast"]


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise InvalidInputError(f"{name} must be {expected}, got {got!r}")


def _require_choice(value: object, choices: object, name: str) -> None:
    options = get_args(choices)
    _require(value in options, name, "one of " + ", ".join(options), value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate's course within a phase, as a factor of the phase's rate.

    kind:         constant; cosine (to `final_ratio` at the phase's end); step (x `decay` each epoch)
    warmup_steps: linear from 1/warmup_steps to 1 before the course begins
    """

    kind: ScheduleKind = "step"
    warmup_steps: int = 0
    decay: float = 0.85
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        _require_choice(self.kind, ScheduleKind, "schedule")
        _require(self.warmup_steps >= 0, "warmup_steps", "an int >= 0", self.warmup_steps)
        _require(0 < self.decay <= 1, "decay", "in (0, 1]", self.decay)
        _require(0 <= self.final_ratio <= 1, "final_ratio", "in [0, 1]", self.final_ratio)

    def factor(self, step: int, num_steps: int, steps_per_epoch: float) -> float:
        """The factor for the 0-based `step` of a phase of `num_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            span = max(num_steps - self.warmup_steps, 1)
            progress = min((step - self.warmup_steps) / span, 1.0)
            half = 0.5 * (1 + math.cos(math.pi * progress))
            return self.final_ratio + (1 - self.final_ratio) * half
        if self.kind == "step":
            return self.decay ** int(step / steps_per_epoch)
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set of a mixture; a micro-batch holds rows of one source only.

    weight:     share of the micro-batches, relative to the other sources'
    batch_size: rows per rank and micro-batch; None takes the phase's
    """

    name: str
    dataset: ExampleDataset
    weight: float = 1.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _require(len(self.dataset) > 0, f"source {self.name!r}", "a non-empty data set", 0)
        _require(self.weight > 0, f"source {self.name!r}: weight", "> 0", self.weight)
        size = self.batch_size
        _require(size is None or size >= 1, f"source {self.name!r}: batch_size", ">= 1", size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training on one mixture; phases follow each other and share the optimiser state.

    steps or epochs: exactly one; an epoch is as many micro-batches as all sources hold together
    batch_size:      rows per rank and micro-batch
    accumulation:    micro-batches per optimiser step
    bucket_batches:  examples are sorted by length within windows of so many batches; 0 is off
    """

    name: str
    sources: tuple[Source, ...]
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-5
    schedule: Schedule = field(default_factory=Schedule)
    bucket_batches: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        where = f"phase {self.name!r}"
        _require(bool(self.sources), f"{where}: sources", "at least one", ())
        names = [source.name for source in self.sources]
        _require(len(set(names)) == len(names), f"{where}: source names", "different", names)
        given = (self.steps, self.epochs)
        _require(given.count(None) == 1, where, "given steps or epochs, one of them", given)
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{where}: {name}", "> 0", value)
        for name in ("batch_size", "accumulation"):
            _require(getattr(self, name) >= 1, f"{where}: {name}", ">= 1", getattr(self, name))
        rate = self.learning_rate
        _require(math.isfinite(rate) and rate >= 0, f"{where}: learning_rate", ">= 0", rate)
        _require(self.bucket_batches >= 0, f"{where}: bucket_batches", ">= 0", self.bucket_batches)

    def micro_batch_size(self, source: Source) -> int:
        return source.batch_size or self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything about a run that is not its data.

    betas, eps, weight_decay: AdamW's; decay is for matrices only
    max_grad_norm:   None does not clip
    precision:       auto is bfloat16 mixed precision on CUDA and float32 elsewhere; the parameters
                     and the optimiser are float32 either way. autocast: on CPUs, products in
                     bfloat16 (for processors that have such instructions)
    save_interval:   steps between checkpoints (0: only at the end); keep_last: checkpoints kept
    eval_interval:   steps between evaluations (0: never)
    log_interval:    steps between lines of metrics
    num_workers:     threads that prepare batches ahead; 0 prepares in the loop
    timeout_minutes: how long ranks wait for each other (evaluation runs on rank 0 alone)
    """

    seed: int = 42
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    save_interval: int = 500
    keep_last: int = 2
    eval_interval: int = 0
    log_interval: int = 1
    num_workers: int = 0
    timeout_minutes: float = 60.0
    show_progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        _require(0 <= self.seed < 2**63, "seed", "in 0 .. 2**63 - 1", self.seed)
        _require(all(0 <= b < 1 for b in self.betas), "betas", "two in [0, 1)", self.betas)
        _require(self.eps > 0, "eps", "> 0", self.eps)
        _require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        norm = self.max_grad_norm
        _require(norm is None or norm > 0, "max_grad_norm", "None or > 0", norm)
        _require_choice(self.precision, Precision, "precision")
        _require(self.keep_last >= 1, "keep_last", ">= 1", self.keep_last)
        _require(self.log_interval >= 1, "log_interval", ">= 1", self.log_interval)
        for name in ("save_interval", "eval_interval", "num_workers"):
            _require(getattr(self, name) >= 0, name, ">= 0", getattr(self, name))
        _require(self.timeout_minutes > 0, "timeout_minutes", "> 0", self.timeout_minutes)
