"""From a checkpoint to what an engine runs on: the model, its caches, and the runner over both.

Every choice of device, format and backend falls here. Knows no question, no thread and no policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from stagebeam.engine.arguments import check_positive
from stagebeam.engine.checkpoints import find_checkpoint
from stagebeam.engine.device import Precision, pick_device, pick_num_threads, pick_precision
from stagebeam.engine.memory.image_slots import ImageSlots
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.memory.plan import MemoryPlan, plan_memory
from stagebeam.engine.models.loader import Model, load_model, load_native_model, read_spec
from stagebeam.engine.models.native import NativeModel
from stagebeam.engine.models.processor import Processor, load_processor
from stagebeam.engine.models.sharding import open_mesh
from stagebeam.engine.models.spec import ModelSpec
from stagebeam.engine.step import lead
from stagebeam.engine.step.graphs import GraphRunner
from stagebeam.engine.step.native_runner import NativeRunner
from stagebeam.engine.step.runner import ModelRunner
from stagebeam.engine.tag_automaton import TagBank, token_bytes
from stagebeam.kernels.registry import resolve

BLOCK_SIZE = 16
POLL_STEPS = 8  # on CUDA


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A loaded checkpoint.

    token_bytes:  what each id of the vocabulary adds to a text; None for special ids
    native_model: the step program's model, None where PyTorch runs
    follow:       under tensor parallelism, work for rank 0 until it stops; has_followers on rank 0
    """

    folder: Path
    device: torch.device
    precision: Precision
    spec: ModelSpec
    processor: Processor
    memory: MemoryPlan
    kv_cache: KVCache
    image_slots: ImageSlots
    token_bytes: tuple[bytes | None, ...]
    runner: ModelRunner
    native_model: NativeModel | None
    follow: Callable[[], None] | None
    has_followers: bool


def load_parts(
    path: str | os.PathLike[str] | None,
    *,
    device: str,
    dtype: str,
    kv_cache_dtype: str,
    backend: str,
    max_model_len: int | None,
    kv_cache_bytes: int | None,
    num_image_slots: int | None,
    max_branches: int,
    num_threads: int | None,
    poll_steps: int | None,
    tensor_parallel: bool,
) -> Parts:
    """Load a checkpoint; `Engine` says what the arguments are. All of its errors."""
    folder = find_checkpoint(path)
    check_positive("max_branches", max_branches)
    optional = {
        "max_model_len": max_model_len,
        "kv_cache_bytes": kv_cache_bytes,
        "num_image_slots": num_image_slots,
        "num_threads": num_threads,
        "poll_steps": poll_steps,
    }
    for name, value in optional.items():
        if value is not None:
            check_positive(name, value)
    place = pick_device(device)
    precision = pick_precision(
        dtype, kv_cache_dtype, place, backend, tensor_parallel=tensor_parallel
    )
    ops = resolve(backend, place.type)
    processor = load_processor(folder, read_spec(folder))
    mesh = open_mesh(place) if tensor_parallel else None
    model: Model
    native_model = None
    if precision.is_native:
        model = native_model = load_native_model(
            folder,
            weight_format=precision.weights,
            backend_ops=ops,
            num_threads=pick_num_threads(num_threads),
        )
        weight_bytes = native_model.weight_bytes
    else:
        weights = precision.model_dtype
        model = load_model(folder, device=place, dtype=weights, backend_ops=ops, mesh=mesh)
        weight_bytes = model.spec.weight_bytes(weights.itemsize)
    spec = model.spec
    memory = plan_memory(
        spec,
        device=place,
        kv_dtype=precision.kv_dtype,
        weight_bytes=weight_bytes,
        kv_cache_bytes=kv_cache_bytes,
        num_image_slots=num_image_slots,
        max_model_len=max_model_len,
        max_branches=max_branches,
        block_size=BLOCK_SIZE,
    )
    if mesh:
        memory = lead.share(memory)  # ranks may have other free memory
    kv_cache = KVCache(
        num_layers=spec.num_layers,
        num_blocks=memory.num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=precision.kv_dtype,
        device=place,
        ops=lead.leading_ops(ops) if mesh else ops,
        has_heads_apart=precision.is_native,
    )
    image_slots = (lead.LeadImageSlots if mesh else ImageSlots)(
        num_slots=memory.num_image_slots,
        num_cross_layers=spec.num_cross_layers,
        vision_tokens=spec.vision_tokens,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=precision.kv_dtype,
        device=place,
        has_heads_apart=precision.is_native,
    )
    pieces = token_bytes(processor.tokenizer)[: spec.vocab_size]
    pieces += [None] * (spec.vocab_size - len(pieces))
    bank = TagBank(pieces, place)
    caches = kv_cache, image_slots
    if poll_steps is None and place.type == "cuda":
        poll_steps = POLL_STEPS
    runner: ModelRunner
    if mesh:
        runner = ModelRunner(lead.LeadModel(model), *caches, bank, ops)
    elif native_model is not None:
        runner = NativeRunner(native_model, *caches, bank, ops, poll_steps)
    elif poll_steps:
        runner = GraphRunner(model, *caches, bank, ops, poll_steps)
    else:
        runner = ModelRunner(model, *caches, bank, ops)
    return Parts(
        folder=folder,
        device=place,
        precision=precision,
        spec=spec,
        processor=processor,
        memory=memory,
        kv_cache=kv_cache,
        image_slots=image_slots,
        token_bytes=tuple(pieces),
        runner=runner,
        native_model=native_model,
        follow=partial(lead.follow, model, *caches, ops) if mesh else None,
        has_followers=mesh is not None and mesh.get_rank() == lead.FIRST,
    )
