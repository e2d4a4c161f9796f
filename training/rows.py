"""Rows of a data set in the LLaVA-CoT-100k layout: read, checked and turned into messages.

A row is `{"id", "image": "relative/path.jpg", "conversations": [{"from": "human" | "gpt", "value"},
...]}`; the image is optional and belongs to the first user turn. Every error names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagebeam.engine.errors import InvalidInputError

IMAGE_MARK = "<image>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class DataError(InvalidInputError):
    """A data set that cannot be trained on; the message names the file and the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One checked row: (role, text) turns without image marks, and the image's path if any."""

    identity: str
    image: Path | None
    turns: tuple[tuple[str, str], ...]

    def messages(self) -> list[dict[str, Any]]:
        """HF messages, the image first in the first user turn."""
        messages: list[dict[str, Any]] = []
        image_waits = self.image is not None
        for role, text in self.turns:
            content: Any = text
            if role == "user" and image_waits:
                content = [{"type": "image"}, {"type": "text", "text": text}]
                image_waits = False
            messages.append({"role": role, "content": content})
        return messages


def parse_row(
    line: bytes,
    *,
    where: str,
    root: Path,
    special_token_in: Callable[[str], str | None],
    image_token: str | None = None,
) -> Row:
    """Check one JSON line of the data set under `root`; `where` is its file and line.

    image_token: the tokenizer's own spelling of the image mark, counted like `<image>`
    Raises DataError for every fault; does not open the image.
    """
    try:
        data = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not a JSON object ({error})") from error
    if not isinstance(data, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(data).__name__}")
    identity = str(data.get("id", ""))
    where = f"{where} (id {identity!r})" if identity else where
    turns = _read_turns(data, where)
    image = _read_image(data, where, root)
    marks = [mark for mark in (IMAGE_MARK, image_token) if mark]
    counts = [sum(text.count(mark) for mark in marks) for _, text in turns]
    first_user = next(i for i, (role, _) in enumerate(turns) if role == "user")
    allowed = 0 if image is None else 1
    if sum(counts) > allowed or sum(counts) != counts[first_user]:
        raise DataError(
            f"{where}: {sum(counts)} image tokens in the text, expected at most {allowed}, in the "
            "first user turn; a row has one image or none"
        )
    cleaned = []
    for role, text in turns:
        for mark in marks:
            text = text.replace(mark, "")
        special = special_token_in(text)
        if special is not None:
            raise DataError(
                f"{where}: the text spells out the special token {special!r}; remove it"
            )
        if not text.strip():
            raise DataError(f"{where}: a {role} turn is empty")
        cleaned.append((role, text.strip()))
    return Row(identity=identity, image=image, turns=tuple(cleaned))


def _read_turns(data: dict[str, Any], where: str) -> list[tuple[str, str]]:
    conversation = data.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise DataError(
            f"{where}: no conversation; expected "
            '"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]'
        )
    turns = []
    for turn in conversation:
        if not (isinstance(turn, dict) and isinstance(turn.get("value"), str)):
            raise DataError(f'{where}: a turn must be {{"from": ..., "value": text}}, got {turn!r}')
        role = _ROLES.get(turn.get("from", ""))
        if role is None:
            raise DataError(
                f'{where}: "from" must be human, gpt or system, got {turn.get("from")!r}'
            )
        turns.append((role, turn["value"]))
    roles = [role for role, _ in turns if role != "system"]
    expected = ["user", "assistant"] * (len(roles) // 2)
    if not roles or roles != expected or any(role == "system" for role, _ in turns[1:]):
        raise DataError(
            f"{where}: bad role order {[turn.get('from') for turn in conversation]}; expected human "
            "and gpt in turn, from human to gpt, after at most one system turn"
        )
    return turns


def _read_image(data: dict[str, Any], where: str, root: Path) -> Path | None:
    name = data.get("image")
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise DataError(f'{where}: "image" must be a path relative to {root}, got {name!r}')
    path = root / name
    if not path.is_file():
        raise DataError(f"{where}: the image {path} is missing")
    return path
