"""Pydantic's findings about a request's body as one fault in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from stagebeam.engine.server.problems import Problem


def validation_problem(errors: Sequence[Any], body: Any, fields: Iterable[str]) -> Problem:
    """The most specific of the findings; where a value may have several forms, each has some.

    fields: the request's names, to guess what a misspelt one meant
    """
    error = max(errors, key=lambda one: len(one["loc"]))
    kind, loc = error["type"], [part for part in error["loc"] if part != "body"]
    if kind == "json_invalid":
        where = loc[0] if loc else 0
        return Problem(400, f"the body is not JSON: {error['ctx']['error']} (character {where})")
    path = ".".join(map(str, _places(loc, body)))
    if kind == "extra_forbidden":
        meant = get_close_matches(str(loc[-1]), list(fields), 1, 0.75)
        hint = f"; did you mean {meant[0]!r}?" if meant else "; /openapi.json lists the fields"
        return Problem(400, f"unknown field {path!r}{hint}", param=path)
    if kind == "missing":
        return Problem(400, f"the field {path!r} is missing", param=path or None)
    return Problem(400, f"{path or 'the body'}: {error['msg']}", param=path or None)


def _places(loc: Sequence[Any], body: Any) -> list[Any]:
    """The path without pydantic's names of a union's forms, which the body does not have."""
    places, here = [], body
    for number, part in enumerate(loc):
        is_last = number == len(loc) - 1
        if isinstance(here, dict) and (part in here or (is_last and isinstance(part, str))):
            places.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            places.append(part)
            here = here[part]
    return places
