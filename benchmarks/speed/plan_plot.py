"""A prediction as a picture: stacked phases per beam size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stagebeam.benchmarks.speed.bench_plot import PHASE_COLOURS


def draw_plan(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """One PNG with a panel a machine, all to one scale."""
    plans = [(document, plan) for document in documents for plan in document["plans"]]
    figure = Figure(figsize=(max(5.0, 3.2 * len(plans)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(plans), squeeze=False, sharey=True)[0]
    for axes, (_, plan) in zip(panels, plans):
        rows = plan["predictions"]
        names = [str(row["beam_size"]) for row in rows]
        bottom = [0.0] * len(rows)
        for phase in ("image_encode", "prefill", "decode", "judge"):
            heights = [row[phase] for row in rows]
            axes.bar(names, heights, 0.6, bottom=bottom, color=PHASE_COLOURS[phase], label=phase)
            bottom = [a + b for a, b in zip(bottom, heights)]
        axes.set_xlabel("beam size N")
        axes.set_title(plan["machine"], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("predicted seconds a question")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(plans[0][0]["title"], fontsize=10)
    figure.savefig(path, dpi=150)
