"""The answer as one self-contained HTML page: image, stages, candidates, matches, timings.

Knows only the plain data of `Answer.to_dict()`. A page is whole or absent: it is written beside its
place and then renamed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def write_report(
    data: Mapping[str, Any], path: str | os.PathLike[str], image_png: bytes | None = None
) -> None:
    """Write the page for an answer's `to_dict()`; `image_png` is shown if given."""
    raise NotImplementedError
