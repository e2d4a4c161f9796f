"""Shape checks at the boundary of an op: named sizes, bound once, compared everywhere.

Knows nothing about the ops. A name stands for one size in all the tensors of a call; a number stands
for itself; a leading `*` takes any number of leading dimensions.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Size, Tensor


def check_shapes(spec: str, *tensors: Tensor) -> None:
    """Raise a ValueError that shows both sides unless the tensors have the shapes of `spec`.

    spec: one `name Dim Dim ...` a tensor, separated by commas: `"q T H D, positions T"`
    """
    _check(spec, *[tensor.shape for tensor in tensors])


@lru_cache(maxsize=512)  # every layer of a step asks the same; old steps are not asked again
def _check(spec: str, *shapes: Size) -> None:
    sizes: dict[str, tuple[int, str]] = {}  # size's name -> (its value, the tensor that bound it)
    for part, shape in zip(spec.split(","), shapes, strict=True):
        name, *dims = part.split()
        wanted, got = dims, list(shape)
        if dims[:1] == ["*"]:
            dims = dims[1:]
            wanted, got = ["...", *dims], got[-len(dims) :]
        problem = f"expected [{', '.join(wanted)}]"
        if len(dims) != len(got):
            raise ValueError(f"{name}: {problem}, got shape {list(shape)}")
        for dim, size in zip(dims, got):
            if dim.isdigit():
                expected, owner = int(dim), "the op"
            else:
                expected, owner = sizes.setdefault(dim, (size, name))
            if size != expected:
                problem += f" with {dim}={expected} (from {owner})"
                raise ValueError(f"{name}: {problem}, got shape {list(shape)}")
