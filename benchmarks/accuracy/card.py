"""The bundled checkpoint's measured numbers, written into a document from evaluations' results.

    python -m stagebeam.benchmarks.accuracy.card RESULTS.json ... --into docs/checkpoint.md

replaces what stands between the two marks in that file; without --into it prints. Results that are
not complete, or of different models, are refused: a card is one model's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.accuracy.bars import check_bars, vote_weight
from stagebeam.benchmarks.accuracy.run import RESULTS
from stagebeam.benchmarks.accuracy.table import (
    judge_table,
    kinds_table,
    markdown_table,
    percent,
    rows_table,
)
from stagebeam.engine.errors import InvalidInputError

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_VERDICTS = {True: "yes", False: "**no**", None: ""}


def make_card(documents: Sequence[dict[str, Any]]) -> str:
    """The bars, then each document's tables."""
    bars = [
        (bar.name, bar.wanted, bar.measured, _VERDICTS[bar.holds]) for bar in check_bars(documents)
    ]
    parts = [
        f"Model sha256 {documents[0]['model']['sha256'][:16]}.",
        markdown_table(("", "wanted", "measured", "holds"), bars),
    ]
    for document in documents:
        parts += _sections(document)
    return "\n\n".join(part for part in parts if part)


def read_results(paths: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Read results (files, or folders that hold one); refuses what makes no card."""
    documents = [_read(Path(path)) for path in paths]
    models = {document["model"]["sha256"] for document in documents}
    if len(models) > 1:
        raise InvalidInputError(f"the results are of {len(models)} models; a card is of one")
    names = [document["data"] for document in documents]
    if len({(document["data"], vote_weight(document)) for document in documents}) < len(names):
        raise InvalidInputError(f"two results of the same data: {', '.join(names)}")
    return documents


def replace_between_marks(text: str, card: str, path: Path) -> str:
    """`text` with `card` between its marks, which must stand there once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InvalidInputError(f"{path} must hold {BEGIN} and {END} once each, in that order")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{card}\n\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write a checkpoint's measured numbers")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results.json, or its folder")
    parser.add_argument("--into", metavar="FILE", help="replace what stands between its marks")
    parser.add_argument("--json", action="store_true", help="print the bars as JSON")
    options = parser.parse_args(arguments)
    try:
        documents = read_results(options.results)
        card = make_card(documents)
        if options.into is not None:
            path = Path(options.into)
            text = replace_between_marks(path.read_text(encoding="utf-8"), card, path)
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
    except (ValueError, OSError) as error:
        print(f"card: {error}", file=sys.stderr)
        return 2
    bars = check_bars(documents)
    if options.json:
        named = ("name", "wanted", "measured", "holds")
        print(json.dumps([{name: getattr(bar, name) for name in named} for bar in bars]))
    elif options.into is None:
        print(card)
    else:
        held = sum(bar.holds is True for bar in bars)
        print(f"wrote {options.into}: {held} of {len(bars)} bars hold")
    return 0


def _read(path: Path) -> dict[str, Any]:
    file = path / RESULTS if path.is_dir() else path
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        is_complete = document["benchmark"] == "accuracy" and document["is_complete"]
    except FileNotFoundError as error:
        raise InvalidInputError(f"{file} does not exist; run stagebeam evaluate first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{file} is no result of stagebeam evaluate") from error
    if not is_complete:
        raise InvalidInputError(f"{file} is not complete: run its command again, it goes on")
    return document


def _sections(document: dict[str, Any]) -> list[str]:
    votes = f", votes counted {weight:g}" if (weight := vote_weight(document)) else ""
    split, number = document["split"], document["num_questions"]
    parts = [f"### {document['data']}, {split} split, {number} questions{votes}"]
    for temperature in dict.fromkeys(row["temperature"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["temperature"] == temperature]
        heading = "Greedy:" if temperature is None else f"Temperature {temperature:g}:"
        parts += [heading, rows_table(rows)]
        if temperature is None:
            parts.append(kinds_table(rows, document["majority"]))
    search = document["temperature_search"]
    if search is not None and search["temperature"] is not None:
        error = dict(map(tuple, search["trials"]))[search["temperature"]]
        parts.append(
            f"Temperature {search['temperature']:g} was chosen on validation questions, where one "
            f"answer is wrong on {percent(error)} %."
        )
    if document["judge_pairs"]:
        parts += ["The judge alone:", judge_table(document["judge_pairs"])]
    parts.append(f"`{document['command']}` ({document['machine']['cpu']}, {document['date'][:10]})")
    return parts


if __name__ == "__main__":
    sys.exit(main())
