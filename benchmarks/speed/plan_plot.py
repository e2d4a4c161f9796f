"""A prediction as a picture: stacked phases per beam size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stagebeam.benchmarks.speed.bench_plot import PHASE_COLOURS


def draw_plan(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """One PNG with a panel a document."""
    figure = Figure(figsize=(5.2 * len(documents), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, document in zip(figure.subplots(1, len(documents), squeeze=False)[0], documents):
        rows = document["predictions"]
        names = [f"N={row['beam_size']}" for row in rows]
        bottom = [0.0] * len(rows)
        for phase in ("image_encode", "prefill", "decode", "judge"):
            heights = [row[phase] for row in rows]
            axes.bar(names, heights, 0.55, bottom=bottom, color=PHASE_COLOURS[phase], label=phase)
            bottom = [a + b for a, b in zip(bottom, heights)]
        axes.set_ylabel("predicted seconds a question")
        axes.set_title(f"{document['model']} on {document['machine']}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
