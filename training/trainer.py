"""The training loop: phases of steps over a mixture, with checkpoints, exports and metrics.

A step's loss is the sum over every rank and micro-batch divided by all their labels' weight, so
it does not depend on how the rows are dealt out. All ranks run the same layers in each micro-batch.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stagebeam.engine.errors import CheckpointError, InvalidInputError
from stagebeam.training.checkpoint import Checkpoint, choose_checkpoint, save_checkpoint
from stagebeam.training.config import Phase, TrainConfig
from stagebeam.training.export import export_model
from stagebeam.training.fsdp import build_objective
from stagebeam.training.loader import StepBatches, iterate_steps
from stagebeam.training.meter import Meter, clip_gradients, memory_gib
from stagebeam.training.metrics import Metrics
from stagebeam.training.progress import Progress, StopRequest
from stagebeam.training.sampler import MixtureSampler, phase_steps
from stagebeam.training.state import collect_state, restore_state
from stagebeam.training.world import World, open_world

logger = logging.getLogger(__name__)

EvalFunction = Callable[[int, Path], "dict[str, float] | None"]


class Trainer:
    """Trains an HF Mllama or Llama folder and leaves an HF folder at `output/final`.

    model_dir: the folder to start from; its tokenizer and other files go into every export
    output:    checkpoints (output/checkpoints/step-*), metrics, exports
    phases:    run in order, one optimiser for all
    eval_fn:   called as eval_fn(step, exported folder) on rank 0; its numbers join the metrics
    metadata:  for stagebeam.json in every export
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        output: str | os.PathLike[str],
        config: TrainConfig,
        phases: Sequence[Phase],
        *,
        eval_fn: EvalFunction | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_dir = Path(model_dir)
        self.output = Path(output)
        self.config = config
        self.phases = tuple(phases)
        self.eval_fn = eval_fn
        self.metadata = dict(metadata or {})
        if not self.phases:
            raise InvalidInputError("training needs at least one phase, got none")

    def train(self, *, resume: str = "auto") -> Progress:
        """Run all phases to their end, or until SIGTERM or SIGINT; returns how far it came.

        resume: "auto" goes on from the newest whole checkpoint in `output`, if there is any;
                "never" refuses an output folder that holds checkpoints; else a checkpoint's path
        """
        is_half = self.config.precision == "bfloat16"
        with open_world(self.config.timeout_minutes, needs_fsdp=is_half) as world:
            return _Run(self, world, resume).train()


class _Run:
    """One process's part in one call of `Trainer.train`."""

    def __init__(self, trainer: Trainer, world: World, resume: str) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.world = world
        self.checkpoints = trainer.output / "checkpoints"
        self.stop = StopRequest()
        torch.manual_seed(self.config.seed + world.rank)
        self.objective = build_objective(trainer.model_dir, self.config, world)
        self.optimizer = _build_optimizer(self.objective, self.config)
        self.progress = self._restore(resume)
        self.num_steps = sum(phase_steps(phase, world.size)[0] for phase in trainer.phases)
        self.saved_step = self.progress.step if self.progress.step else -1

    def train(self) -> Progress:
        trainer, progress = self.trainer, self.progress
        trainer.output.mkdir(parents=True, exist_ok=True)
        with self.stop.listening():
            metrics = None
            if self.world.is_first:
                metrics = Metrics(
                    trainer.output,
                    first_step=progress.step,
                    num_steps=self.num_steps,
                    show_progress=self.config.show_progress,
                )
            try:
                is_stopped = False
                while progress.phase < len(trainer.phases) and not is_stopped:
                    is_stopped = self._run_phase(trainer.phases[progress.phase], metrics)
                self._save()
            finally:
                if metrics is not None:
                    metrics.close()
        if not progress.is_finished:
            logger.warning("stopped at step %d; run again to go on", progress.step)
        else:
            self._export(trainer.output / "final")
        return progress

    def _run_phase(self, phase: Phase, metrics: Metrics | None) -> bool:
        """Run `phase` from where progress stands; True if asked to stop."""
        world, config, progress = self.world, self.config, self.progress
        sampler = MixtureSampler(
            phase, seed=config.seed, phase_index=progress.phase, num_ranks=world.size
        )
        sampler.counts = list(progress.counts) or sampler.counts
        num_steps, steps_per_epoch = phase_steps(phase, world.size)
        meter = Meter([source.name for source in phase.sources], world)
        steps = iterate_steps(
            phase,
            sampler,
            self.objective.shape,
            num_steps=num_steps - progress.phase_step,
            rank=world.rank,
            num_ranks=world.size,
            num_workers=config.num_workers,
        )
        is_stopped = False
        for loaded in steps:
            factor = phase.schedule.factor(progress.phase_step, num_steps, steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = phase.learning_rate * factor
            is_stopped = self._step(loaded, meter)
            progress.step += 1
            progress.phase_step += 1
            progress.counts = loaded.counts
            is_last = is_stopped or progress.phase_step == num_steps
            saves = self._is_due(config.save_interval)
            # Logged before saving: a loss that is not finite ends the run unsaved.
            if self._is_due(config.log_interval) or is_last or saves:
                epoch = progress.phase_step / steps_per_epoch
                self._log(meter, metrics, phase.learning_rate * factor, epoch)
            paused = time.perf_counter()
            if saves and not is_last:
                self._save()
            if self._is_due(config.eval_interval):
                self._evaluate(metrics)
            meter.skip_time(time.perf_counter() - paused)
            if is_stopped:
                break
        if progress.phase_step >= num_steps:
            progress.phase += 1
            progress.phase_step = 0
            progress.counts = []
            progress.is_finished = progress.phase == len(self.trainer.phases)
            self._save()
        return is_stopped

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.progress.step % interval == 0

    def _step(self, loaded: StepBatches, meter: Meter) -> bool:
        """One optimiser step; True if any rank wants to stop."""
        world = self.world
        counts = [
            sum(batch.total_weight for batch in loaded.batches),
            sum(batch.num_tokens for batch in loaded.batches),
            int(self.stop.is_set),
            *(int(batch.images is not None) for batch in loaded.batches),
        ]
        sums = torch.tensor(counts, dtype=torch.float64, device=world.device)
        total_weight, num_tokens, wants_stop, *with_images = world.sum(sums).tolist()
        # FSDP averages gradients over ranks; the objective is a sum over them.
        scale = world.size / (total_weight or 1.0)
        for batch, source, has_images in zip(loaded.batches, loaded.sources, with_images):
            loss = self.objective(batch.to(world.device), bool(has_images))
            (loss * scale).backward()
            meter.add_loss(source, loss.detach(), batch.total_weight)
        self.progress.num_tokens += int(num_tokens)
        meter.add_tokens(int(num_tokens))
        max_norm = self.config.max_grad_norm
        wants_norm = (self.progress.step + 1) % self.config.log_interval == 0
        if max_norm is not None or wants_norm:
            meter.grad_norm = clip_gradients(self.objective, world, max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return bool(wants_stop)

    def _log(
        self, meter: Meter, metrics: Metrics | None, learning_rate: float, epoch: float
    ) -> None:
        progress = self.progress
        values = meter.take()
        progress.seconds += values["seconds"]
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss became {values['loss']} by step {progress.step}; lower the learning rate "
                "or clip gradients, and resume from the last checkpoint"
            )
        if metrics is None:
            return
        values |= {
            "learning_rate": learning_rate,
            "memory_gib": memory_gib(self.world.device),
            "num_tokens": progress.num_tokens,
            "epoch": epoch,
            "phase": self.trainer.phases[progress.phase].name,
        }
        metrics.write(progress.step, values)
        metrics.show(
            progress.step,
            {
                "loss": f"{values['loss']:.4f}",
                "tok/s": f"{values['tokens_per_second']:.0f}",
                "lr": f"{learning_rate:.2e}",
                "GiB": f"{values['memory_gib']:.1f}",
            },
        )

    def _evaluate(self, metrics: Metrics | None) -> None:
        folder = self.trainer.output / "eval"
        self._export(folder)
        if metrics is not None and self.trainer.eval_fn is not None:
            self.objective.eval()
            numbers = self.trainer.eval_fn(self.progress.step, folder) or {}
            self.objective.train()
            metrics.write(self.progress.step, {f"eval_{k}": v for k, v in numbers.items()})
        self.world.barrier()

    def _export(self, folder: Path) -> None:
        trainer = self.trainer
        export_model(
            self.objective, trainer.model_dir, folder, self.world, metadata=trainer.metadata
        )

    def _save(self) -> None:
        progress = self.progress
        if progress.step == self.saved_step:
            return
        state = progress.to_state(self.trainer.phases, self.world.size)
        tensors = collect_state(self.objective, self.optimizer, self.world)
        save_checkpoint(
            self.checkpoints, tensors, state, self.world, keep_last=self.config.keep_last
        )
        self.saved_step = progress.step

    def _restore(self, resume: str) -> Progress:
        checkpoint = self._find_checkpoint(resume)
        if checkpoint is None:
            return Progress()
        progress = Progress.from_state(checkpoint.state, self.trainer.phases, self.world.size)
        restore_state(self.objective, self.optimizer, checkpoint, self.world)
        logger.info("resumed from %s", checkpoint.folder)
        return progress

    def _find_checkpoint(self, resume: str) -> Checkpoint | None:
        """Rank 0 chooses and verifies, so that all ranks go on from the same one."""
        found: Checkpoint | CheckpointError | InvalidInputError | None = None
        if self.world.is_first:
            try:
                found = choose_checkpoint(self.checkpoints, resume)
            except (CheckpointError, InvalidInputError) as error:
                found = error
        found = self.world.from_first(found)
        if isinstance(found, Exception):
            raise found
        return found


def _build_optimizer(objective: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
