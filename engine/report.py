"""The answer as one self-contained HTML page: image, stages, candidates, matches, timings.

Knows only the plain data of `Answer.to_dict()` and the page's frame in report.html; the page loads
nothing and runs no script. It is whole or absent: written beside its place, then renamed.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.report_costs import (
    blocks_figure,
    cost_note,
    count_tiles,
    counted,
    seconds_text,
    timings_figure,
)
from stagebeam.engine.report_tree import label, tree_svg

_FRAME = Path(__file__).with_name("report.html")
_SMALL_IMAGE_PIXELS = 200  # narrower ones are enlarged with hard edges
_ENDINGS = {
    "tag": "closed",
    "eos": "ended early",
    "length": "reached its length limit",
    "wrong_tag": "closed another stage's tag",
    "aborted": "aborted",
}
_STRATEGIES = {
    "greedy": "greedy decoding",
    "single": "one sample",
    "best_of_n": "best of N",
    "sentence_beam": "sentence-level beam search",
    "stage_beam": "stage-level beam search",
    "swires": "stage-wise retracing",
}
_SETTLED = {
    "identical": "identical texts: not judged, the first one stays",
    "malformed": "decided without a judge: a malformed candidate loses",
    "gate": "decided by the gate: the reasoning was found incorrect",
}


def write_report(
    data: Mapping[str, Any], path: str | os.PathLike[str], image_png: bytes | None = None
) -> None:
    """Write the page for an answer's `to_dict()`; `image_png` is shown if given.

    A path that cannot be written is an InvalidInputError, and what was there stays as it was.
    """
    page = render_page(data, image_png)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        if target.exists() and not target.is_file():
            raise InvalidInputError(f"cannot write the report to {target}: it is not a file")
        with open(partial, "x", encoding="utf-8", errors="replace") as file:
            file.write(page)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidInputError(
            f"cannot write the report to {target}: {error.strerror or error}; choose a path in an "
            "existing folder that you may write to"
        ) from error


def render_page(data: Mapping[str, Any], image_png: bytes | None = None) -> str:
    """The page as text."""
    stages = data["stages"]
    num_candidates = sum(len(stage["candidates"]) for stage in stages)
    num_matches = sum(len(stage["matches"]) for stage in stages)
    is_small = image_png is not None and _png_width(image_png) < _SMALL_IMAGE_PIXELS
    return Template(_FRAME.read_text(encoding="utf-8")).substitute(
        title=escape(_clip(data["question"], 80)),
        image_rendering="pixelated" if is_small else "auto",
        hero_class="" if image_png is None else "has-image",
        picture="" if image_png is None else _picture(image_png),
        question=escape(data["question"]),
        reply=_reply(data),
        chips=_chips(data),
        tree_note="Every dot is a candidate that was written; the bold line is the answer's path.",
        tree=tree_svg(stages, has_one_parent=data["strategy"] != "swires"),
        stages_note=(
            f"{counted(num_candidates, 'candidate')} in {counted(len(stages), 'step')}, "
            f"{counted(num_matches, 'match', 'matches')}. The survivor of a step comes first, and "
            "the next step goes on from it."
        ),
        stages="".join(_stage(stage) for stage in stages),
        cost_note=cost_note(data["usage"]),
        timings=timings_figure(data["timings"]),
        blocks=blocks_figure(data["usage"]),
        counts=count_tiles(data["usage"], data["timings"]),
        text=escape(data["text"]),
    )


def _picture(png: bytes) -> str:
    encoded = base64.b64encode(png).decode("ascii")
    return (
        '<div class="card picture">'
        f'<img alt="The image asked about" src="data:image/png;base64,{encoded}"></div>'
    )


def _png_width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")


def _reply(data: Mapping[str, Any]) -> str:
    is_closed = data["finish_reason"] == "tag"
    words = data["conclusion"]
    if not words:
        words = f"No conclusion: the answer {_ENDINGS[data['finish_reason']]}."
        if is_closed:
            words = "The answer holds no conclusion."
    state = "" if is_closed and data["conclusion"] else " broken"
    return (
        f'<div class="card reply{state}"><p class="eyebrow">Answer</p>'
        f'<p class="words">{escape(words)}</p></div>'
    )


def _chips(data: Mapping[str, Any]) -> str:
    chips = [f'<span class="chip"><b>{escape(_STRATEGIES[data["strategy"]])}</b></span>']
    if data["strategy"] in ("best_of_n", "sentence_beam", "stage_beam"):
        chips.append(f'<span class="chip num">beam size <b>{data["beam_size"]}</b></span>')
    chips.append(f'<span class="chip num">seed <b>{data["seed"]}</b></span>')
    chips.append(f'<span class="chip num"><b>{seconds_text(data["timings"]["total"])}</b></span>')
    if data["finish_reason"] != "tag":
        chips.append(f'<span class="chip warn">{_ENDINGS[data["finish_reason"]]}</span>')
    return "".join(chips)


def _stage(stage: Mapping[str, Any]) -> str:
    candidates = stage["candidates"]
    winner = stage["winner"]
    order = [winner, *(i for i in range(len(candidates)) if i != winner)]
    is_alone = len(candidates) == 1
    cards = "".join(_candidate(i, candidates[i], i == winner, is_alone) for i in order)
    matches = ""
    if stage["matches"]:
        rows = "".join(_match(match) for match in stage["matches"])
        matches = f'<div class="card matches"><p class="eyebrow">Matches</p>{rows}</div>'
    return (
        f'<article class="stage"><header><h3>{escape(stage["name"])}</h3>'
        f"<span>{counted(len(candidates), 'candidate')}</span></header>"
        f'<div class="candidates">{cards}</div>{matches}</article>'
    )


def _candidate(
    index: int, candidate: Mapping[str, Any], is_winner: bool, is_alone: bool = False
) -> str:
    is_bad = candidate["finish_reason"] != "tag"
    classes = "card candidate" + " winner" * is_winner + " bad" * is_bad
    chips = [_badge(index, is_winner)]
    if is_winner and not is_alone:
        chips.append('<span class="chip small win">survives</span>')
    chips.append(
        f'<span class="chip small{" warn" * is_bad}">{_ENDINGS[candidate["finish_reason"]]}</span>'
    )
    facts = []
    if candidate["score"] is not None:
        facts.append(f"score {candidate['score']:.2f}")
    if candidate["token_ids"]:
        facts.append(counted(len(candidate["token_ids"]), "token"))
    if candidate["cumulative_logprob"] is not None:
        facts.append(f"logprob {candidate['cumulative_logprob']:.1f}")
    text = re.sub(
        r"&lt;(/?\w+)&gt;", r'<span class="tagname">&lt;\1&gt;</span>', escape(candidate["inner"])
    )
    return (
        f'<div class="{classes}"><div class="top">{"".join(chips)}</div>'
        f'<div class="text">{text}</div><p class="facts num">{" · ".join(facts)}</p></div>'
    )


def _match(match: Mapping[str, Any]) -> str:
    first, second, winner = match["first"], match["second"], match["winner"]
    is_judged = match["kind"] == "judged"
    share = match["probability"] if winner == first else 1 - match["probability"]
    side = "" if winner == first else " second"
    notes = []
    if not is_judged:
        notes.append(_SETTLED[match["kind"]])
    elif match["is_tie"]:
        notes.append(f"a tie: {label(winner)} is the lower one")
    else:
        notes.append(f"{100 * share:.1f} % for {label(winner)}")
    chips = ""
    if match["is_disagreement"]:
        chips += '<span class="chip small warn">the two orders disagree</span>'
    if match["is_malformed_verdict"]:
        chips += '<span class="chip small warn">malformed verdict</span>'
    reason = ""
    if match["verdict_text"]:
        reason = (
            "<details><summary>the judge's words</summary>"
            f"<p>{escape(match['verdict_text'])}</p></details>"
        )
    return (
        f'<div class="match">{_badge(first, winner == first)}'
        f'<span class="bar{side}{"" if is_judged else " settled"}">'
        f'<i style="width:{100 * share:.1f}%"></i></span>{_badge(second, winner == second)}'
        f'<span class="why num">{"".join(notes)}{chips}</span>{reason}</div>'
    )


def _badge(index: int, is_winner: bool) -> str:
    state = " win" if is_winner else ""
    return f'<span class="badge{state}" title="candidates[{index}]">{label(index)}</span>'


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
