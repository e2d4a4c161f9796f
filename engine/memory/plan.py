"""What fits: from a byte budget to a number of KV blocks and image slots, with the arithmetic.

Invariant: the caches of a plan never take more than its budget.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from stagebeam.engine.errors import CapacityError, InvalidInputError
from stagebeam.engine.memory.caches import head_bytes
from stagebeam.engine.models.spec import ModelSpec

FREE_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.85}
MAX_IMAGE_SLOTS = 64
IMAGE_SHARE = 0.25  # of the budget, at most, goes to image slots
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Sizes of the caches and where they come from; bytes throughout."""

    num_blocks: int
    block_size: int
    block_bytes: int
    num_image_slots: int
    image_slot_bytes: int
    weight_bytes: int
    max_model_len: int

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def image_bytes(self) -> int:
        return self.num_image_slots * self.image_slot_bytes

    def report(self) -> str:
        """The memory report, a line an item."""
        rows = [
            f"weights      {_gib(self.weight_bytes)}",
            f"KV cache     {_gib(self.kv_cache_bytes)} = {self.num_blocks} blocks x "
            f"{self.block_size} tokens x {self.block_bytes // self.block_size} bytes",
            f"image slots  {_gib(self.image_bytes)} = {self.num_image_slots} slots x "
            f"{self.image_slot_bytes} bytes",
            f"context      {self.max_model_len} tokens",
        ]
        return "\n".join(rows)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3f} GiB"


def free_memory_bytes(device: torch.device) -> int:
    """Free memory of the device; on a CPU what the system calls available, within a cgroup's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    available = int(line.split()[1]) * 1024
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit_file:
            limit = limit_file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as used_file:
            used = int(used_file.read())
        if limit != "max":
            available = min(available, max(0, int(limit) - used))
    except OSError:
        pass  # not Linux, or no cgroup: what sysconf said stands
    return available


def plan_memory(
    spec: ModelSpec,
    *,
    device: torch.device,
    kv_dtype: torch.dtype,
    weight_bytes: int,
    kv_cache_bytes: int | None,
    num_image_slots: int | None,
    max_model_len: int | None,
    max_branches: int,
    block_size: int,
) -> MemoryPlan:
    """Size the caches: `kv_cache_bytes` for the blocks as given, else a share of the free memory.

    kv_dtype: of both caches; weight_bytes: what the loaded model takes, for the report.

    Without `kv_cache_bytes` it takes no more blocks than twice `max_branches` full contexts can use.
    Without `max_model_len` the context is what the model allows, or what the blocks hold if less.
    """
    limit = spec.max_position_embeddings
    if max_model_len is not None and not 1 < max_model_len <= limit:
        raise InvalidInputError(
            f"max_model_len must be in 2 .. {limit}, the model's own limit, got {max_model_len}"
        )
    context = max_model_len or limit
    # What is cached of a token in a layer: keys and values of every head.
    token_bytes = 2 * spec.num_kv_heads * head_bytes(spec.head_dim, kv_dtype)
    block_bytes = block_size * spec.num_layers * token_bytes
    slot_bytes = spec.vision_tokens * spec.num_cross_layers * token_bytes
    budget = int(free_memory_bytes(device) * FREE_MEMORY_SHARE[device.type])
    if num_image_slots is None:
        fits = int(budget * IMAGE_SHARE) // slot_bytes if slot_bytes else 0
        num_image_slots = max(1, min(MAX_IMAGE_SLOTS, fits)) if slot_bytes else 0
    if kv_cache_bytes is None:
        fits = (budget - num_image_slots * slot_bytes) // block_bytes
        num_blocks = min(fits, 2 * max_branches * -(-context // block_size))
    else:
        num_blocks = kv_cache_bytes // block_bytes
        budget = kv_cache_bytes + num_image_slots * slot_bytes
    needed = -(-context // block_size) if max_model_len else 2
    if num_blocks < needed:
        raise CapacityError(
            f"max_model_len {context} needs {needed} blocks of {block_bytes} bytes "
            f"({_gib(needed * block_bytes)}) of KV cache but {_gib(max(0, num_blocks) * block_bytes)} "
            f"is there; lower max_model_len or raise kv_cache_bytes (now {kv_cache_bytes})"
        )
    return MemoryPlan(
        num_blocks=int(num_blocks),
        block_size=block_size,
        block_bytes=block_bytes,
        num_image_slots=num_image_slots,
        image_slot_bytes=slot_bytes,
        weight_bytes=weight_bytes,
        max_model_len=min(context, int(num_blocks) * block_size),
    )
