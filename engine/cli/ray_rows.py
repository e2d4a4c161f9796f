"""Rows mapped over workers of Ray Data: each worker is made once, in a process of its own.

Knows nothing of the rows. Invariant: results come in the order of the items, as soon as they and
those before them are there.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from stagebeam.engine.errors import InvalidInputError

Work = Callable[[list[Any]], list[Any]]


def map_rows(
    make: Callable[[], Work],
    items: Sequence[Any],
    *,
    num_workers: int,
    resources: dict[str, float],
    rows_at_once: int,
) -> Iterator[Any]:
    """What `make()(part)` gives for parts of the items, one result an item, in their order.

    make:      called once in each worker's process
    resources: `num_cpus` and `num_gpus` of a worker
    """
    if not items:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = ray.data.from_items(
        [{"item": pickle.dumps(item)} for item in items],
        override_num_blocks=-(-len(items) // rows_at_once),
    )
    results = rows.map_batches(
        _Worker,
        fn_constructor_args=(make,),
        batch_size=rows_at_once,
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, rows.num_blocks())),
        **resources,
    )
    try:
        for row in results.iter_rows():
            yield pickle.loads(row["result"])
    except RayError as error:
        raise _as_users_fault(error) from error


def call_once(work: Callable[[], Any], resources: dict[str, float]) -> Any:
    """What `work()` gives in a worker's place."""
    try:
        return ray.get(ray.remote(**resources)(_call).remote(work))
    except RayError as error:
        raise _as_users_fault(error) from error


def _call(work: Callable[[], Any]) -> Any:
    return work()


def check_room(num_workers: int, resources: dict[str, float]) -> None:
    """Refuse workers that this Ray can never hold: it would wait for them for ever."""
    there = ray.cluster_resources()
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        wanted, has = num_workers * resources[name], there.get(kind, 0.0)
        if wanted > has:
            raise InvalidInputError(
                f"{num_workers} workers of {resources[name]:g} {kind} need {wanted:g} but this Ray has "
                f"{has:g}; ask for fewer workers or for less each"
            )


class _Worker:
    """Pickled rows to pickled results."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._work = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = self._work([pickle.loads(item) for item in batch["item"]])
        return {"result": [pickle.dumps(result) for result in results]}


def _as_users_fault(error: RayError) -> Exception:
    """The ValueError that a worker raised, without Ray's traceback around it; else the error."""
    cause: BaseException | None = error
    while cause is not None:
        inner = cause.cause if isinstance(cause, RayTaskError) else None
        if isinstance(inner, ValueError):
            return inner
        cause = cause.__cause__
    return error
