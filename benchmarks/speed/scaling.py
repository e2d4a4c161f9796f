"""How a decode step grows with the work: `python -m stagebeam.benchmarks.speed.scaling`.

Branches, trunk length and questions in flight on a checkpoint, the vocabulary on drawn models. Each
sweep's growth is fitted in logarithms over its upper half: 1 is linear, 2 would be quadratic. Beside
each step stand its floor and what the planner predicts. Sweeps and calibration take turns, twice, and
the quicker of two times counts: interference only ever slows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.speed.bare import step_seconds
from stagebeam.benchmarks.speed.bench_command import (
    Workload,
    add_workload_options,
    finish,
    head,
)
from stagebeam.benchmarks.speed.bench_table import markdown_table, source_line
from stagebeam.benchmarks.speed.calibration import ModelTimes, prices_of, time_models
from stagebeam.benchmarks.speed.costs import Calibrated, Costs, Step
from stagebeam.benchmarks.speed.floor import step_bytes
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed, measure_machine
from stagebeam.benchmarks.speed.measure import say
from stagebeam.benchmarks.speed.statistics import fitted_slope
from stagebeam.benchmarks.speed.synthetic import SyntheticSize, write_synthetic
from stagebeam.engine.engine import Engine
from stagebeam.engine.models.spec import ModelSpec

SWEEPS = {
    "branches": (1, 2, 4, 8, 16, 32, 64),
    "trunk tokens": (128, 512, 1024, 2048, 4096, 8128),
    "questions in flight": (1, 2, 4, 8, 16, 32),
    "questions in flight, N=4": (1, 2, 4, 8, 16),
    "vocabulary": (1024, 4096, 16384, 65536, 131072),
}
_TRUNK, _ROWS, _NUM_STEPS, _NUM_TURNS = 256, 4, 8, 2
_DRAWN = SyntheticSize(num_layers=2, hidden_size=192, vocab_size=1024)


@dataclass(frozen=True, slots=True)
class Timed:
    """A step of one model, timed."""

    spec: ModelSpec
    step: Step
    seconds: float


def run_sweeps(engine: Engine, sweeps: dict[str, Sequence[int]]) -> dict[str, list[Timed]]:
    """A decode step of every size of every sweep."""
    timed: dict[str, list[Timed]] = {}
    for name, sizes in sweeps.items():
        say(f"sweep: {name}")
        timed[name] = []
        for size in sizes:
            if name == "vocabulary":
                with _drawn_engine(size, engine) as drawn:
                    timed[name].append(_time(drawn, step_of(name, size)))
            else:
                timed[name].append(_time(engine, step_of(name, size)))
    return timed


def step_of(name: str, size: int) -> Step:
    """What one step of a sweep at that size consists of."""
    is_many = name.startswith("questions in flight")
    rows = {"branches": size, "questions in flight": 1}.get(name, _ROWS)
    return Step(
        rows=rows * size if is_many else rows,
        trunk_tokens=size if name == "trunk tokens" else _TRUNK,
        tail_tokens=_NUM_STEPS / 2,
        vision_tokens=0,
        trunks=size if is_many else 1,
    )


def _time(engine: Engine, step: Step) -> Timed:
    spec = engine.spec
    step = replace(step, vision_tokens=spec.tokens_per_tile if spec.vision else 0)
    seconds = step_seconds(
        engine,
        rows=step.rows // step.trunks,
        trunk_tokens=step.trunk_tokens,
        num_groups=step.trunks,
        num_steps=_NUM_STEPS,
        is_best=True,
    )
    return Timed(spec, step, seconds)


def _point(timed: Timed, costs: Costs | None, speed: MachineSpeed) -> dict[str, Any]:
    """Seconds of the step, its floors, and the planner's prediction."""
    spec, step, seconds = timed.spec, timed.step, timed.seconds
    if costs is None:
        return {"seconds": seconds}
    read = step_bytes(
        spec,
        weight_bytes=costs.weight_bytes,
        kv_bytes=costs.kv_bytes,
        trunk_tokens=step.trunks * step.trunk_tokens,
        tail_tokens=int(step.rows * step.tail_tokens),
        vision_tokens=step.vision_tokens,
    )
    products = 2.0 * spec.num_decode_parameters * step.rows
    compute = products / costs.prefill_flops if isinstance(costs, Calibrated) else 0.0
    return {
        "seconds": seconds,
        "predicted": costs.decode_step(spec, step),
        "read_floor": read / speed.bytes_per_second,
        "compute_floor": compute,
    }


@contextmanager
def _drawn_engine(vocab_size: int, like: Engine) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_synthetic(replace(_DRAWN, vocab_size=vocab_size), Path(scratch))
        with Engine(
            folder, dtype=like.dtype, backend=like.backend, kv_cache_bytes=64 << 20
        ) as engine:
            yield engine


def to_markdown(document: dict[str, Any]) -> str:
    """A row a sweep's size, and the fitted growth of each sweep."""
    parts = [f"# {document['title']}"]
    for name, sweep in document["sweeps"].items():
        rows = [
            (
                point["size"],
                f"{1000 * point['seconds']:.3f}",
                *(
                    (
                        f"{1000 * max(point['read_floor'], point['compute_floor']):.3f}",
                        "reading" if point["read_floor"] > point["compute_floor"] else "products",
                        f"{1000 * point['predicted']:.3f}",
                        f"{point['predicted'] / point['seconds'] - 1:+.0%}",
                    )
                    if "predicted" in point
                    else ("", "", "", "")
                ),
            )
            for point in sweep["points"]
        ]
        fit = sweep["fit"]
        headings = (name, "step ms", "floor ms", "bound by", "predicted ms", "off by")
        parts += [
            markdown_table(headings, rows),
            f"Growth over the upper half: exponent {fit['exponent']:.2f}; "
            f"{1e6 * fit['seconds_per_unit']:.3f} us each over {1000 * fit['seconds_fixed']:.2f} ms.",
        ]
    return "\n\n".join([*parts, source_line(document)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every sweep; table to stdout, files where asked."""
    parser = argparse.ArgumentParser(prog="scaling", description=__doc__)
    add_workload_options(parser)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--no-prediction", action="store_true", help="leave floors and the planner out"
    )
    options = parser.parse_args(arguments)
    workload = Workload(options)
    speed = measure_machine()
    room = workload.spec.max_position_embeddings - 64
    sweeps: dict[str, Sequence[int]] = {
        name: [n for n in sizes if name != "trunk tokens" or n <= room]
        for name, sizes in SWEEPS.items()
    }
    runs, models = [], []
    for _ in range(_NUM_TURNS):
        if not options.no_prediction:
            say("calibration")
            models.append(time_models(options.dtype, options.backend))
        with Engine(
            workload.folder,
            dtype=options.dtype,
            backend=options.backend,
            kv_cache_bytes=options.kv_cache_bytes,
            num_image_slots=2,
        ) as engine:
            runs.append(run_sweeps(engine, sweeps))
    costs = prices_of(reduce(ModelTimes.best, models), options.dtype) if models else None
    points = {
        name: [
            {"size": size, **_point(min(turns, key=lambda t: t.seconds), costs, speed)}
            for size, *turns in zip(sizes, *(run[name] for run in runs))
        ]
        for name, sizes in sweeps.items()
    }
    document = {
        **head("scaling", f"Decode step of {options.model}, {options.dtype}", workload, speed),
        "setting": {"dtype": options.dtype},
        "sweeps": {
            name: {
                "points": points[name],
                "fit": fitted_slope(sizes, [point["seconds"] for point in points[name]]),
            }
            for name, sizes in sweeps.items()
        },
    }
    finish(document, to_markdown(document), options, "scaling")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
