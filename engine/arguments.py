"""Checks of what a caller passes to the engine itself; a fault is an InvalidInputError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stagebeam.engine.errors import InvalidInputError


def check_positive(name: str, value: object) -> None:
    """Refuse what is no int >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name} must be an int >= 1, got {value!r}")


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse what is neither None nor of its class."""
    if value is not None and not isinstance(value, kind):
        raise InvalidInputError(f"{name} must be None or {kind.__name__}, got {value!r}")


def check_seconds(name: str, value: object) -> None:
    """Refuse what is neither None nor a finite time > 0."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):  # type: ignore[operator]
        raise InvalidInputError(f"{name} must be None or a number of seconds > 0, got {value!r}")


def as_arguments(entry: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    """A question of a list as `submit`'s arguments; `shared` are those that all may take."""
    if isinstance(entry, str):
        return {"question": entry}
    if isinstance(entry, Mapping):
        allowed = {"question", "image", *shared}
        if "question" not in entry or not set(entry) <= allowed:
            raise InvalidInputError(
                f"a question as a dict needs 'question' and takes {sorted(allowed)}, got "
                f"{sorted(map(str, entry))}"
            )
        return dict(entry)
    if isinstance(entry, tuple) and len(entry) == 2:
        return {"question": entry[0], "image": entry[1]}
    raise InvalidInputError(
        f"a question must be a text, (text, image) or a dict of submit's arguments, got {entry!r}"
    )
