"""Accuracy against beam size as a picture; the only file here that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

# Colours that stay apart for the colour-blind (Okabe and Ito), and markers that do in grey.
_STYLES = {
    "stage_beam": ("stage-level beam search", "#0072B2", "o"),
    "best_of_n": ("best-of-N", "#D55E00", "s"),
    "sentence_beam": ("sentence-level search", "#009E73", "^"),
    "single": ("one sampled answer", "#CC79A7", "D"),
}


def draw_plot(document: dict[str, Any], path: Path) -> None:
    """Write one PNG with a panel a temperature, the bars being 95 % intervals."""
    sampled = [row for row in document["rows"] if row["temperature"] is not None]
    greedy = [row for row in document["rows"] if row["temperature"] is None]
    temperatures = list(dict.fromkeys(row["temperature"] for row in sampled)) or [None]
    figure = Figure(figsize=(1.0 + 5.2 * len(temperatures), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axes, temperature in zip(panels, temperatures, strict=True):
        _draw_panel(axes, [row for row in sampled if row["temperature"] == temperature], greedy)
        if temperature is not None:
            axes.set_title(f"temperature {temperature:g}", fontsize=10)
    panels[0].set_ylabel("answers right (%), 95 % interval")
    lines = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    figure.suptitle(
        f"{document['data']}, {document['split']} split, {document['num_questions']} questions",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def _draw_panel(
    axes: Axes, rows: Sequence[dict[str, Any]], greedy: Sequence[dict[str, Any]]
) -> None:
    for number, (strategy, (name, color, marker)) in enumerate(_STYLES.items()):
        own = sorted((r for r in rows if r["strategy"] == strategy), key=lambda r: r["beam_size"])
        if not own:
            continue
        shares = [100 * row["accuracy"] for row in own]
        below = [share - 100 * row["interval"][0] for share, row in zip(shares, own)]
        above = [100 * row["interval"][1] - share for share, row in zip(shares, own)]
        axes.errorbar(
            [row["beam_size"] * 1.02**number for row in own],  # so that bars do not hide bars
            shares,
            yerr=[below, above],
            label=name,
            color=color,
            marker=marker,
            markersize=5,
            capsize=2.5,
            linewidth=1.5,
            elinewidth=0.9,
        )
    for row in greedy:
        axes.axhline(100 * row["accuracy"], color="0.35", linestyle="--", linewidth=1)
        axes.axhspan(*(100 * end for end in row["interval"]), color="0.35", alpha=0.08, linewidth=0)
        axes.plot([], [], color="0.35", linestyle="--", linewidth=1, label="greedy")
    axes.set_xscale("log", base=2)
    sizes = sorted({row["beam_size"] for row in rows}) or [1]
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("beam size N")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
