"""The shape check: names bind once, a failure shows both sides."""

from __future__ import annotations

import pytest
import torch

from stagebeam.kernels.shapes import check_shapes


def test_names_numbers_and_leading_dimensions() -> None:
    x = torch.empty(3, 4, 5)
    check_shapes("x T C D, y C, z D 2", x, torch.empty(4), torch.empty(5, 2))
    check_shapes("x * D, y D", x, torch.empty(5))
    check_shapes("x * D, y D", torch.empty(5), torch.empty(5))
    check_shapes("x T 0", torch.empty(7, 0))


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        ("x T C, y C", [(3, 4), (5,)], r"y: expected \[C\] with C=4 \(from x\), got shape \[5\]"),
        ("ids R 2", [(3, 3)], r"ids: expected \[R, 2\] with 2=2 .*, got shape \[3, 3\]"),
        ("x T C", [(3,)], r"x: expected \[T, C\], got shape \[3\]"),
        ("x * C, y C", [(), (5,)], r"x: expected \[\.\.\., C\], got shape \[\]"),
    ],
)
def test_a_mismatch_shows_both_sides(spec: str, shapes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_shapes(spec, *[torch.empty(shape) for shape in shapes])
