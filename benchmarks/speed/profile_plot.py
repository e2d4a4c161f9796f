"""Latency per beam size as a picture: stacked phases, the floor and the prediction beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stagebeam.benchmarks.speed.bench_plot import PHASE_COLOURS
from stagebeam.benchmarks.speed.measure import PHASES


def draw_profile(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """One PNG with a panel a document: stacked phases, decoding's floor, the planner's decode time."""
    figure = Figure(figsize=(5.6 * len(documents), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, document in zip(figure.subplots(1, len(documents), squeeze=False)[0], documents):
        names = list(document["summary"])
        places = range(len(names))
        bottom = [0.0] * len(names)
        for phase in PHASES:
            heights = [document["summary"][n]["phases"][phase]["median"] for n in names]
            axes.bar(places, heights, 0.55, bottom=bottom, color=PHASE_COLOURS[phase], label=phase)
            bottom = [a + b for a, b in zip(bottom, heights)]
        floors = [document["summary"][n]["floor_seconds"]["median"] for n in names]
        axes.plot(places, floors, "k_", markersize=22, markeredgewidth=2, label="decode floor")
        if document["predictions"]:
            predicted = [document["predictions"][n]["decode"] for n in names]
            axes.plot(places, predicted, "kx", label="decode predicted")
        axes.set_xticks(list(places), names)
        axes.set_ylabel("seconds a question")
        axes.set_title(document["title"], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=150)
