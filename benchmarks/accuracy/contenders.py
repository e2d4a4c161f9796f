"""Which searches compete: `stage_beam:1,2,4,best_of_n:1,10,greedy` as a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.params import SearchParams, Strategy

WIDTHLESS = ("greedy", "single")
KNOWN = tuple(name for name in get_args(Strategy) if name != "swires")


@dataclass(frozen=True, slots=True)
class Contender:
    """One search and its beam size."""

    strategy: Strategy
    beam_size: int

    @property
    def label(self) -> str:
        return self.strategy if self.strategy in WIDTHLESS else f"{self.strategy}:{self.beam_size}"

    @property
    def search(self) -> SearchParams:
        return SearchParams(strategy=self.strategy, beam_size=self.beam_size)


def parse_contenders(text: str) -> list[Contender]:
    """Read `name:N,N,...,name:N,...`; numbers after a comma are more beam sizes of the name before."""
    found: list[Contender] = []
    name = ""
    for item in text.split(","):
        word, colon, size = item.strip().rpartition(":")
        if colon:
            name = _known(word, text)
        elif not size.isdigit():
            name, size = _known(size, text), ""
        elif not name:
            raise InvalidInputError(
                f"strategies {text!r} begin with {size}: name one, stage_beam:4"
            )
        contender = Contender(cast(Strategy, name), _beam_size(name, size))
        if contender in found:
            raise InvalidInputError(f"strategies {text!r} name {contender.label} twice")
        found.append(contender)
    return found


def _known(name: str, text: str) -> str:
    if name not in KNOWN:
        reason = "swires needs a scorer of its own" if name == "swires" else f"got {name!r}"
        raise InvalidInputError(f"strategies {text!r}: expected {', '.join(KNOWN)}; {reason}")
    return name


def _beam_size(name: str, size: str) -> int:
    if name in WIDTHLESS:
        if size not in ("", "1"):
            raise InvalidInputError(f"{name} is one answer and takes no beam size, got {size!r}")
        return 1
    if not (size.isdigit() and int(size)):
        raise InvalidInputError(
            f"{name} needs beam sizes >= 1, as in {name}:1,4; got {size or 'none'!r}"
        )
    return SearchParams(beam_size=int(size)).beam_size
