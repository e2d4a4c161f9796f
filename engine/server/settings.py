"""What an operator decides about a server: names, limits, and what images may be read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from stagebeam.engine.arguments import check_positive, check_seconds
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import JudgeParams, SearchParams

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """A server's settings.

    model_name:       what clients call the model
    api_key:          bearer token that /v1 wants; None wants none
    search, judge:    what a request without search options gets
    max_body_bytes:   of a request, images included; more is answered 413
    max_image_bytes:  of one image, encoded
    max_questions:    in flight at once, an `n` of 3 counting as 3; more are answered 429
    deadline_seconds: the most a request may take, and what one without a deadline of its own gets
    allow_remote_images: fetch http(s) image URLs, from public addresses only
    image_folder:     file: URLs may name files in it; None allows none
    """

    model_name: str
    api_key: str | None = field(default=None, repr=False)
    search: SearchParams = field(default_factory=SearchParams)
    judge: JudgeParams = field(default_factory=JudgeParams)
    max_body_bytes: int = 32 * MIB
    max_image_bytes: int = 20 * MIB
    max_questions: int = 128
    deadline_seconds: float = 600.0
    allow_remote_images: bool = False
    image_folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_image_bytes", "max_questions"):
            check_positive(name, getattr(self, name))
        check_seconds("deadline_seconds", self.deadline_seconds)
        if not self.model_name:
            raise InvalidInputError("the served model needs a name, got an empty one")
        if self.api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise InvalidInputError("an API key must be printable ASCII without spaces")
        if self.image_folder is not None and not self.image_folder.is_dir():
            raise InvalidInputError(f"the image folder {self.image_folder} is not a folder")
