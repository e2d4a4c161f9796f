"""Decode steps against sizes as a picture, one panel a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_scaling(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """One PNG with a panel a sweep: measured, predicted, and the floor."""
    sweeps = documents[0]["sweeps"]
    figure = Figure(figsize=(3.0 * len(sweeps), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for axes, (name, sweep) in zip(panels, sweeps.items()):
        points = sweep["points"]
        sizes = [point["size"] for point in points]
        axes.plot(
            sizes, [1000 * p["seconds"] for p in points], "o-", color="#0072B2", label="measured"
        )
        if "predicted" in points[0]:
            axes.plot(sizes, [1000 * p["predicted"] for p in points], "kx", label="predicted")
            floors = [1000 * max(p["read_floor"], p["compute_floor"]) for p in points]
            axes.plot(sizes, floors, "--", color="#999999", label="floor")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name)
        axes.set_title(f"grows with exponent {sweep['fit']['exponent']:.2f}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("decode step, ms")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(documents[0]["title"], fontsize=10)
    figure.savefig(path, dpi=120)
