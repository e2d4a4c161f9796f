"""A run's metrics as pictures: one small panel a series, steps along, phases marked.

Reads the JSON lines that metrics.py writes (or the log kept beside a checkpoint); the only file of
the trainer that needs matplotlib.
"""

from __future__ import annotations

import json
import logging
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stagebeam.engine.errors import InvalidInputError

logger = logging.getLogger(__name__)

LOG_NAMES = ("metrics.jsonl", "training_log.jsonl")  # in a run's folder, beside a checkpoint
_COLUMNS = 4
_SMOOTHING = 0.9  # of the dark line: how much of the mean before stays at each point
_LOSS, _EVALUATION, _OTHER = "#0072B2", "#009E73", "0.35"
_OTHERS = ("learning_rate", "grad_norm", "tokens_per_second")
_MOST_OVER_LEAST = 30  # a series that spans more is drawn on a logarithmic axis


@dataclass(slots=True)
class Series:
    """One metric over the steps at which it was logged."""

    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def smoothed(self) -> list[float]:
        """The exponential mean of the points so far, on a logarithmic scale where all are > 0."""
        is_positive = min(self.values) > 0
        means, total, weight = [], 0.0, 0.0
        for value in self.values:
            total = _SMOOTHING * total + (math.log(value) if is_positive else value)
            weight = _SMOOTHING * weight + 1.0
            means.append(math.exp(total / weight) if is_positive else total / weight)
        return means

    @property
    def last(self) -> float:
        """Where it stands: a loss smoothed, anything else as last measured."""
        return self.smoothed()[-1] if self.name.startswith("loss") else self.values[-1]


@dataclass(slots=True)
class Log:
    """The series of a log in drawing order, and the step after which each phase began."""

    series: list[Series]
    phases: list[tuple[str, int]]


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read a log, or the one in a run's folder; damaged lines are left out with a warning."""
    file = _find_log(Path(path))
    found: dict[str, Series] = {}
    phases: list[tuple[str, int]] = []
    last_step = None
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s, line %d: left out a damaged line", file, number)
            continue
        phase = values.get("phase")
        if phase is not None and (not phases or phases[-1][0] != phase):
            phases.append((str(phase), step if last_step is None else last_step))
        last_step = step
        for name, value in values.items():
            if _group(name) is None or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                series = found.setdefault(name, Series(name))
                series.steps.append(step)
                series.values.append(float(value))
    if not found:
        raise InvalidInputError(
            f"{file} holds no metrics to draw; expected lines with step and loss"
        )
    names = sorted(found, key=lambda name: (_group(name), list(found).index(name)))
    return Log([found[name] for name in names], phases)


def draw_curves(log: Log, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Write the PNG `path`, whole or not at all."""
    target = Path(path)
    rows = math.ceil(len(log.series) / _COLUMNS)
    columns = min(len(log.series), _COLUMNS)
    size = (0.6 + 3.1 * columns, 0.8 + 2.1 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    panels: list[Axes] = [axes for row in grid for axes in row]
    for axes, series in zip(panels, log.series):
        _draw_series(axes, series, log.phases)
    for axes in panels[len(log.series) :]:
        axes.set_visible(False)
    for axes in panels[max(len(log.series) - columns, 0) : len(log.series)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    if title:
        figure.suptitle(title, fontsize=10)
    if len(log.phases) > 1:
        begun = ", ".join(f"{name} {step}" for name, step in log.phases)
        text = textwrap.fill(f"phases and the steps after which they begin: {begun}", 50 * columns)
        figure.supxlabel(text, fontsize=7, color="0.4")
    partial = target.with_name(f".{target.name}.partial")
    try:
        figure.savefig(partial, dpi=110, format="png")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _draw_series(axes: Axes, series: Series, phases: Sequence[tuple[str, int]]) -> None:
    color = (_LOSS, _EVALUATION, _OTHER)[_group(series.name) or 0]
    is_smoothed = series.name.startswith("loss") or series.name == "grad_norm"
    alpha, width = (0.3, 0.8) if is_smoothed else (1.0, 1.2)
    marker = "o" if len(series.values) < 30 and not is_smoothed else ""
    axes.plot(
        series.steps,
        series.values,
        color=color,
        alpha=alpha,
        linewidth=width,
        marker=marker,
        markersize=3,
    )
    if is_smoothed:
        axes.plot(series.steps, series.smoothed(), color=color, linewidth=1.4)
    if (
        is_smoothed
        and min(series.values) > 0
        and max(series.values) > _MOST_OVER_LEAST * min(series.values)
    ):
        axes.set_yscale("log")
    for _, step in phases[1:]:
        axes.axvline(step, color="0.75", linewidth=0.8, zorder=0)
    axes.set_title(_title(series), fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(series: Series) -> str:
    prefix, _, rest = series.name.partition("_")
    words = {"loss": "loss a token", "eval": "evaluation"}.get(prefix)
    name = (
        series.name.replace("_", " ") if words is None else ": ".join(filter(None, [words, rest]))
    )
    return f"{name} ({series.last:.4g})"


def _group(name: str) -> int | None:
    """0 losses, 1 evaluation, 2 what else is drawn, None what is not."""
    if name == "loss" or name.startswith("loss_"):
        return 0
    if name.startswith("eval_"):
        return 1
    return 2 if name in _OTHERS else None


def _find_log(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in LOG_NAMES if (path / name).is_file()]
        if not found:
            raise InvalidInputError(f"{path} holds no log: expected {' or '.join(LOG_NAMES)} in it")
        return found[0]
    if not path.is_file():
        raise InvalidInputError(
            f"{path} does not exist; expected a metrics.jsonl or a run's folder"
        )
    return path
