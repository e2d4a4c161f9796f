"""Triton's interpreter, refusing every access outside the tensors that a launch was given.

Knows no op, except that copy_blocks' table of addresses stands for tensors like its `word_ptr`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor


class OutOfBoundsError(AssertionError):
    """A kernel touched memory that is none of its arguments'."""


def spans_of(arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(first byte, one past the last) of each tensor that a kernel may touch, sorted."""
    spans = [span(value) for value in arguments.values() if isinstance(value, Tensor)]
    if "addresses_ptr" in arguments:
        like = arguments["word_ptr"]
        num_bytes = like.numel() * like.element_size()
        spans += [(begin, begin + num_bytes) for begin in arguments["addresses_ptr"].tolist()]
    begins, ends = np.array(sorted(spans), dtype=np.uint64).reshape(-1, 2).T
    return begins, np.maximum.accumulate(ends)


def span(tensor: Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    if not tensor.numel():
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return begin, begin + (last + 1) * tensor.element_size()


def check(kernel: str, what: str, spans: Any, pointers: Any, mask: Any) -> None:
    begins, ends = spans
    addresses = np.asarray(pointers.data)[np.asarray(mask.data, dtype=bool)].ravel()
    if not addresses.size:
        return
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    owners = np.searchsorted(begins, addresses, side="right") - 1
    is_outside = (owners < 0) | (addresses + np.uint64(size) > ends[np.maximum(owners, 0)])
    if is_outside.any():
        raise OutOfBoundsError(
            f"{kernel} {what} {int(is_outside.sum())} of {addresses.size} addresses outside its tensors"
        )


@contextmanager
def checked() -> Iterator[list[str]]:
    """Check every launch in the interpreter; yields the names of the kernels that ran."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, run = builder.create_masked_load, builder.create_masked_store, executor.__call__
    ran: list[str] = []
    spans: list[Any] = [None]

    def checked_run(self: Any, *args: Any, **named: Any) -> Any:
        ran.append(self.fn.__name__)
        spans[0] = spans_of({**dict(zip(self.arg_names, args)), **named})
        return run(self, *args, **named)

    def checked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        check(ran[-1], "reads", spans[0], ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(ran[-1], "writes", spans[0], ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    with (
        mock.patch.object(builder, "create_masked_load", checked_load),
        mock.patch.object(builder, "create_masked_store", checked_store),
        mock.patch.object(executor, "__call__", checked_run),
    ):
        yield ran
