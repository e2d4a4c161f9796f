"""The native model under the race's clock: hand-made caches, prompts, branches, greedy decode steps.

It stands in for the engine's loop, which adds its own host time. A prompt's blocks are the trunk that
its branches share; each branch has a tail of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagebeam.engine.memory.caches import zero_caches
from stagebeam.engine.models.forward import ForwardBatch, KVLayers, PrefillAttention
from stagebeam.engine.models.loader import build_native_model, read_spec
from stagebeam.engine.models.native import DecodeAddresses
from stagebeam.engine.models.safetensors_files import SafetensorsFiles
from stagebeam.kernels.registry import resolve

BLOCK_SIZE = 16
_PAUSE = 0.05  # seconds in which OpenMP's threads, which made the tensors, stop spinning
# Keys and values are kept in the format beside the weights'.
KV_DTYPES = {"float32": torch.float32}


class NativeRun:
    """SmolLM2 in one weight format."""

    def __init__(self, folder: Path, weight_format: str, num_threads: int) -> None:
        self.format = weight_format
        self.model = build_native_model(
            read_spec(folder),
            SafetensorsFiles(folder),
            weight_format=weight_format,
            backend_ops=resolve("reference"),
            num_threads=num_threads,
        )
        self._no_images: KVLayers = []  # the same list every call: another is bound anew
        self._kv_dtype = KV_DTYPES.get(weight_format, torch.bfloat16)

    @property
    def decode_bytes(self) -> int:
        """Packed weight bytes that a step reads."""
        return self.model.program.decode_bytes(False)

    def multiply_adds(self, branches: int, length: int) -> int:
        """Of a decode step whose branches attend to `length` tokens each."""
        s = self.model.spec
        q_size, kv_size = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        layer = s.hidden_size * (2 * (q_size + kv_size) + 3 * s.intermediate_size)
        attention = 2 * length * q_size
        return branches * (s.num_layers * (layer + attention) + s.hidden_size * s.vocab_size)

    @property
    def kv_bytes(self) -> int:
        """Cache bytes that the last step's attention read."""
        return self.model.program.last_kv_bytes

    def least_kv_bytes(self, prompt: int, branches: int, prompts: int, tail: int) -> int:
        """One trunk a prompt and one tail of `tail` tokens a branch."""
        tokens = prompts * (prompt + branches * tail)
        return tokens * self.model.spec.kv_bytes_per_token(self._kv_dtype.itemsize)

    def prefill(self, prompts: Sequence[Sequence[int]], branches: int, num_tokens: int) -> float:
        """Cache the prompts, each for `branches` branches of at most num_tokens; seconds."""
        length, spec = len(prompts[0]), self.model.spec
        assert length % BLOCK_SIZE == 0, "a trunk is whole blocks"
        trunk_blocks = length // BLOCK_SIZE
        tail = -(-num_tokens // BLOCK_SIZE)
        rows = len(prompts) * branches
        ids = np.arange(len(prompts) * trunk_blocks + rows * tail, dtype=np.int32)
        self._trunks = ids[: len(prompts) * trunk_blocks].reshape(len(prompts), -1)
        self._tails = ids[self._trunks.size :].reshape(rows, tail)
        shape = (len(ids), BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self._kv = zero_caches(
            spec.num_layers, shape, self._kv_dtype, torch.device("cpu"), has_heads_apart=True
        )
        positions = np.tile(np.arange(length), len(prompts))
        slots = self._trunks.repeat(BLOCK_SIZE, 1) * BLOCK_SIZE + np.arange(length) % BLOCK_SIZE
        batch = ForwardBatch(
            token_ids=torch.from_numpy(np.concatenate(prompts).astype(np.int64)),
            positions=torch.from_numpy(positions),
            slot_mapping=_int32(slots.ravel()),
            attention=PrefillAttention(
                cu_seqlens_q=_int32(np.arange(len(prompts) + 1) * length),
                seq_lens=_int32(np.full(len(prompts), length)),
                block_tables=_int32(self._trunks),
                max_seqlen_q=length,
                max_seqlen_k=length,
            ),
            output_rows=torch.arange(1, len(prompts) + 1) * length - 1,
        )
        time.sleep(_PAUSE)
        began = time.perf_counter()
        hidden = self.model.forward(batch, self._kv, self._no_images)
        first = torch.from_numpy(self.model.logits(hidden).numpy().argmax(-1))
        seconds = time.perf_counter() - began
        self._start_decoding(first.repeat_interleave(branches), length, branches)
        return seconds

    def step(self) -> float:
        """One greedy token a branch, as the engine's decode step takes it; seconds."""
        began = time.perf_counter()
        self.model.decode_steps(
            1, self._addresses, self._kv, self._no_images, self._tables, self._eos_ids
        )
        return time.perf_counter() - began

    def _start_decoding(self, first: Tensor, length: int, branches: int) -> None:
        """The arrays that decode steps read and advance: greedy rows without tags or an end."""
        rows = len(first)
        groups = rows // branches
        self._tables = _NoTags(
            torch.zeros((1, self.model.spec.vocab_size), dtype=torch.int16), _int32(np.full(1, -1))
        )
        self._eos_ids = torch.zeros(0, dtype=torch.int64)

        def filled(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype)

        state = [
            first.clone(),
            filled(length, torch.int64),
            filled(0, torch.int32),
            filled(0, torch.int32),
        ]
        offsets, trunks = _int32(np.arange(groups + 1) * branches), _int32(self._trunks)
        lengths, tails = _int32(np.full(groups, length)), _int32(self._tails)
        sampling = [
            *(filled(0, torch.int64), filled(0, torch.int64), filled(0, torch.float32)),
            *(filled(0, torch.int32), filled(1, torch.float32), filled(0, torch.float32)),
            *(filled(0, torch.int64), filled(1, torch.bool), filled(1 << 30, torch.int32)),
        ]
        sampled = [
            *(filled(0, torch.int64), filled(0, torch.float32)),
            *(filled(0, torch.int32), filled(0, torch.int8)),
        ]
        # The addresses are of these.
        self._held = [*state, offsets, trunks, lengths, tails, *sampling, *sampled]

        def at(tensors: Sequence[Tensor]) -> tuple[int, ...]:
            return tuple(tensor.data_ptr() for tensor in tensors)

        self._addresses = DecodeAddresses(
            state=(rows, BLOCK_SIZE, *at(state)),
            groups=(
                *(groups, *at([offsets, trunks]), trunks.shape[1]),
                *(*at([lengths, tails]), tails.shape[1]),
            ),
            images=(0, 0, 0, 0),
            sampling=at(sampling),
            sampled=at(sampled),
        )


@dataclass
class _NoTags:
    """One state that no token leaves."""

    next_state: Tensor
    accept_tag: Tensor


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))
