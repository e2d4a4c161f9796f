"""Speed as pictures; with profile_plot.py the only files here that need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stagebeam.benchmarks.speed.measure import PHASES

# Colours that stay apart for the colour-blind (Okabe and Ito).
PHASE_COLOURS = {
    "image_encode": "#CC79A7",
    "prefill": "#E69F00",
    "decode": "#0072B2",
    "judge": "#D55E00",
    "host": "#999999",
}


def draw_bench(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds a round by phase, a stacked bar a contender, a panel a document; one PNG."""
    height = 1.6 + 0.45 * max(len(document["summary"]) for document in documents)
    figure = Figure(figsize=(6.4 * len(documents), height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, document in zip(figure.subplots(1, len(documents), squeeze=False)[0], documents):
        names = list(document["summary"])[::-1]
        left = [0.0] * len(names)
        for phase in PHASES:
            widths = [document["summary"][name]["phases"][phase]["median"] for name in names]
            axes.barh(names, widths, left=left, color=PHASE_COLOURS[phase], label=phase)
            left = [a + b for a, b in zip(left, widths)]
        for y, total in enumerate(left):
            axes.text(total, y, f" {total:.2f} s", va="center", fontsize=8)
        axes.set_xlim(0, 1.15 * max(left))
        axes.set_xlabel("seconds a round, medians")
        axes.set_title(document["title"], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)
