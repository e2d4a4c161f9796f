"""The parts that both text models are made of.

Layers hand on a pair: `update`, what the last block computed, and `residual`, the stream it still
has to be added to, so that the addition is fused with the norm that follows it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from stagebeam.engine.models.attention import SelfAttention
from stagebeam.engine.models.forward import ForwardBatch
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.models.weights import Weights
from stagebeam.kernels.registry import Ops


class RMSNorm:
    """Adds the pending update to the residual stream and norms the sum."""

    def __init__(self, spec: ModelSpec, weights: Weights, name: str, ops: Ops) -> None:
        self._ops = ops
        self._eps = spec.rms_norm_eps
        self.weight = weights.take(f"{name}.weight", spec.hidden_size)

    def __call__(self, update: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(normed, residual + update); an update of None is zero."""
        if update is None:
            return self._ops.rms_norm(residual, self.weight, self._eps), residual
        return self._ops.add_rms_norm(update, residual, self.weight, self._eps)


class GatedMLP:
    """SwiGLU; gate and up come from one product."""

    def __init__(self, spec: ModelSpec, weights: Weights, name: str, ops: Ops) -> None:
        self._ops = ops
        self._ranks = weights.ranks
        hidden, inner = spec.hidden_size, spec.intermediate_size
        self.gate_up = weights.take_fused(
            (f"{name}.gate_proj.weight", f"{name}.up_proj.weight"), (inner, inner), hidden
        )
        self.down = weights.take(f"{name}.down_proj.weight", hidden, inner)

    def __call__(self, x: Tensor) -> Tensor:
        inner = self._ops.silu_mul(F.linear(x, self.gate_up))
        return self._ranks.sum(F.linear(inner, self.down))


class SelfAttentionLayer:
    """A Llama decoder layer."""

    def __init__(self, spec: ModelSpec, weights: Weights, name: str, ops: Ops) -> None:
        self.input_norm = RMSNorm(spec, weights, f"{name}.input_layernorm", ops)
        self.attention = SelfAttention(spec, weights, f"{name}.self_attn", ops)
        self.mlp_norm = RMSNorm(spec, weights, f"{name}.post_attention_layernorm", ops)
        self.mlp = GatedMLP(spec, weights, f"{name}.mlp", ops)

    def __call__(
        self,
        update: Tensor | None,
        residual: Tensor,
        batch: ForwardBatch,
        cache: tuple[Tensor, ...],
        cos_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x, residual = self.input_norm(update, residual)
        x, residual = self.mlp_norm(self.attention(x, batch, cache, cos_sin), residual)
        return self.mlp(x), residual


class Head:
    """The final norm and the projection to the vocabulary."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, norm_name: str, embedding: Tensor, ops: Ops
    ) -> None:
        self.norm = RMSNorm(spec, weights, norm_name, ops)
        self._ops = ops
        self._ranks = weights.ranks
        self._vocab_size = spec.vocab_size
        if spec.has_tied_head:
            self.lm_head = self._ranks.tied_head(embedding, spec.vocab_size)
        else:
            self.lm_head = weights.take_part("lm_head.weight", spec.vocab_size, spec.hidden_size)

    def hidden(self, update: Tensor | None, residual: Tensor, rows: Tensor | None) -> Tensor:
        """The wanted rows after the final norm, [num_outputs, hidden_size]; rows None takes all."""
        if rows is not None:
            residual = residual[rows]
            update = None if update is None else update[rows]
        return self.norm(update, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden_size] -> float32 [R, vocab_size]."""
        logits = F.linear(hidden, self.lm_head)
        return self._ranks.whole_vocabulary(logits, self._vocab_size).float()

    def verdict_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits of ids [R, 2] alone, float32 [R, 2]."""
        logits: Tensor = self._ops.verdict_logits(hidden, self.lm_head, ids)
        return logits
