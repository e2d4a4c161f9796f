"""Forward passes: prefill chunks, decode steps, verdicts and images, on one model and its caches.

The only caller of the model. Knows rows and sequences, not questions or stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from stagebeam.engine.branch import FinishReason
from stagebeam.engine.memory.image_slots import ImageSlots
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.models.loader import Model
from stagebeam.engine.models.processor import PreparedImage
from stagebeam.engine.step.batch import DecodeBatch, PrefillChunk, prefill_batch
from stagebeam.engine.tag_automaton import TagBank
from stagebeam.kernels.registry import Ops
from stagebeam.kernels.sample_step import FINISH

# By finish code; None is a branch that goes on.
FINISH_REASONS = {
    code: None if reason == "running" else cast(FinishReason, reason)
    for code, reason in FINISH.items()
}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a call of `decode` sampled: a list a row in the batch's order, all of one length.

    finish: of each row after its last token
    """

    token_ids: list[list[int]]
    logprobs: list[list[float]]
    finish: list[FinishReason | None]

    @property
    def num_steps(self) -> int:
        return len(self.token_ids[0])


class ModelRunner:
    """Runs the model over the caches; one instance per engine, called by one thread."""

    def __init__(
        self, model: Model, kv_cache: KVCache, image_slots: ImageSlots, bank: TagBank, ops: Ops
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.image_slots = image_slots
        self.bank = bank
        self._ops = ops
        self._device = model.device
        self._eos_ids = torch.tensor(model.spec.eos_ids, dtype=torch.int64, device=self._device)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """One pass over packed chunks; returns the wanted hidden states, [num_wanted, hidden_size].

        A chunk may read blocks that another chunk of the same pass writes: each layer stores every
        row's K and V before it attends.
        """
        batch = prefill_batch(
            chunks, self.kv_cache.pool, self.model.spec.vision_tokens, self._device
        )
        return self.model.forward(batch, self.kv_cache.layers, self.image_slots.layers)

    @torch.inference_mode()
    def decode(self, batch: DecodeBatch, may_run_ahead: bool = False) -> StepResult:
        """Write each row's last token, sample its next, and move the rows on, in place.

        may_run_ahead: a runner that can may do several steps, up to one in which a row finishes
        """
        slots = self.kv_cache.append_one(batch.seqs)
        forward = batch.forward_batch(slots, self.kv_cache.pool)
        hidden = self.model.forward(forward, self.kv_cache.layers, self.image_slots.layers)
        arrays = batch.sampling
        token_ids, logprobs, states, finish = self._ops.sample_step(
            self.model.logits(hidden),
            arrays.seeds,
            arrays.uids,
            batch.steps(),
            arrays.temperature,
            arrays.top_k,
            arrays.top_p,
            arrays.min_p,
            self.bank.next_state,
            self.bank.accept_tag,
            batch.states(),
            arrays.goal_masks,
            self._eos_ids,
            arrays.ignore_eos,
            arrays.max_tokens,
        )
        sampled = zip(batch.rows, token_ids.tolist(), states.tolist(), strict=True)
        for row, token_id, state in sampled:
            row.last_token, row.state = token_id, state
            row.position += 1
            row.step += 1
        return StepResult(
            token_ids.unsqueeze(1).tolist(),
            logprobs.unsqueeze(1).tolist(),
            [FINISH_REASONS[code] for code in finish.tolist()],
        )

    @torch.inference_mode()
    def verdicts(self, hidden: Tensor, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """Log-odds of the first id against the second at each row of `hidden`."""
        ids = torch.from_numpy(np.asarray(pairs, dtype=np.int64)).to(self._device)
        logits = self.model.verdict_logits(hidden, ids)
        return (logits[:, 0] - logits[:, 1]).tolist()

    @torch.inference_mode()
    def encode_image(self, image: PreparedImage, slot: int) -> None:
        """Run the vision tower once and keep the cross-attention K and V in `slot`."""
        layers = self.model.encode_image(
            image.pixel_values, image.aspect_ratio_id, image.aspect_ratio_mask
        )
        self.image_slots.store(slot, layers)
