"""The search tree as inline SVG: a column of dots a stage, the winner's path drawn through them.

Knows only `Answer.to_dict()`'s stages; colours and movement are the page's style sheet's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLUMN = 150  # pixels between columns, at least
_WIDTH = 1000  # pixels shared by the columns of a short answer
_MAX_HEIGHT = 330
_TOP = 34  # room for the stages' names
_LABELLED_RADIUS = 9  # smaller dots have no letter in them


def label(index: int) -> str:
    """A candidate's letters: A .. Z, AA, AB and so on."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def tree_svg(stages: Sequence[Mapping[str, Any]], *, has_one_parent: bool) -> str:
    """The tree; `has_one_parent` says that a stage's candidates all grew from the last winner."""
    most = max((len(stage["candidates"]) for stage in stages), default=1)
    gap = min(40.0, _MAX_HEIGHT / most)
    radius = min(13.0, gap * 0.38)
    height = _TOP + max(gap * most, 46) + 6
    middle = _TOP + (height - _TOP - 6) / 2
    parent = (30.0, middle)
    spread = max(_COLUMN, min(250, _WIDTH // max(len(stages), 1)))
    edges: list[str] = []
    win_edges: list[str] = []
    dots = [_dot(*parent, 15, "?", "root", "the question")]
    for column, stage in enumerate(stages):
        x = 30.0 + (column + 1) * spread
        dots.append(f'<text class="name" x="{x:.0f}" y="16">{escape(_short(stage["name"]))}</text>')
        first = middle - gap * (len(stage["candidates"]) - 1) / 2
        for index, candidate in enumerate(stage["candidates"]):
            y = first + gap * index
            is_winner = index == stage["winner"]
            if is_winner:
                win_edges.append(_edge(parent, (x, y), f' class="win" style="--step:{column}"'))
            elif has_one_parent:
                edges.append(_edge(parent, (x, y), ""))
            classes = " ".join(
                name
                for name, is_on in (
                    ("win", is_winner),
                    ("bad", candidate["finish_reason"] != "tag"),
                )
                if is_on
            )
            text = label(index) if radius >= _LABELLED_RADIUS else ""
            title = f"{stage['name']}, candidate {label(index)}: {candidate['inner'][:200]}"
            dots.append(_dot(x, y, radius, text, classes, title))
        parent = (x, first + gap * stage["winner"])
    width = 30 + len(stages) * spread + 70
    return (
        f'<svg role="img" aria-label="The search tree" width="{width}" '
        f'viewBox="0 0 {width} {height:.0f}">{"".join(edges + win_edges + dots)}</svg>'
    )


def _edge(start: tuple[float, float], end: tuple[float, float], attributes: str) -> str:
    (x0, y0), (x1, y1) = start, end
    bend = (x0 + x1) / 2
    return (
        f'<path{attributes} pathLength="1" '
        f'd="M{x0:.1f} {y0:.1f}C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"/>'
    )


def _dot(x: float, y: float, radius: float, text: str, classes: str, title: str) -> str:
    letters = f'<text x="{x:.1f}" y="{y + 4:.1f}">{escape(text)}</text>' if text else ""
    return (
        f'<g class="{classes}"><title>{escape(title)}</title>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>{letters}</g>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"
