"""Decode steps against sizes as a picture, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_scaling(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """One PNG with a panel a sweep."""
    sweeps = documents[0]["sweeps"]
    figure = Figure(figsize=(3.2 * len(sweeps), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, sweep) in zip(
        figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items()
    ):
        axes.loglog(sweep["sizes"], [1000 * s for s in sweep["seconds"]], "o-", color="#0072B2")
        axes.set_xlabel(name)
        axes.set_ylabel("step ms")
        axes.set_title(f"exponent {sweep['fit']['exponent']:.2f}", fontsize=9)
    figure.savefig(path, dpi=150)
