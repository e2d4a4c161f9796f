"""How a decode step grows with the work: `python -m stagebeam.benchmarks.speed.scaling`.

Branches, trunk length and questions in flight on a checkpoint, the vocabulary on drawn models. Each
sweep's growth is fitted in logarithms over its upper half: 1 is linear, 2 would be quadratic.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
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
from stagebeam.benchmarks.speed.machine_speed import measure_machine
from stagebeam.benchmarks.speed.statistics import fitted_slope
from stagebeam.benchmarks.speed.synthetic import SyntheticSize, write_synthetic
from stagebeam.engine.engine import Engine

SWEEPS = {
    "branches": (1, 2, 4, 8, 16, 32, 64),
    "trunk tokens": (128, 512, 1024, 2048, 3072, 4000),
    "questions in flight": (1, 2, 4, 8, 16, 32),
    "vocabulary": (1024, 4096, 16384, 65536, 131072),
}
_TRUNK, _ROWS = 256, 4


def run_sweeps(
    engine: Engine, sweeps: dict[str, Sequence[int]], dtype: str, backend: str
) -> dict[str, list[float]]:
    """Seconds a decode step for every size of every sweep."""
    step: dict[str, Callable[[int], float]] = {
        "branches": lambda n: step_seconds(engine, rows=n, trunk_tokens=_TRUNK),
        "trunk tokens": lambda n: step_seconds(engine, rows=_ROWS, trunk_tokens=n),
        "questions in flight": lambda n: step_seconds(
            engine, rows=1, trunk_tokens=_TRUNK, num_groups=n
        ),
        "vocabulary": lambda n: _vocabulary(n, dtype, backend),
    }
    return {name: [step[name](size) for size in sizes] for name, sizes in sweeps.items()}


def _vocabulary(size: int, dtype: str, backend: str) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_synthetic(
            SyntheticSize(num_layers=2, hidden_size=192, vocab_size=size), Path(scratch)
        )
        with Engine(folder, dtype=dtype, backend=backend, kv_cache_bytes=64 << 20) as engine:
            return step_seconds(engine, rows=_ROWS, trunk_tokens=_TRUNK)


def to_markdown(document: dict[str, Any]) -> str:
    """A row a sweep's size, and the fitted growth of each sweep."""
    parts = [f"# {document['title']}"]
    for name, sweep in document["sweeps"].items():
        rows = [(n, f"{1000 * s:.3f}") for n, s in zip(sweep["sizes"], sweep["seconds"])]
        fit = sweep["fit"]
        parts += [
            markdown_table((name, "step ms"), rows),
            f"Growth over the upper half: exponent {fit['exponent']:.2f}; "
            f"{1e6 * fit['seconds_per_unit']:.3f} us each over {1000 * fit['seconds_fixed']:.2f} ms.",
        ]
    return "\n\n".join([*parts, source_line(document)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every sweep; table to stdout, files where asked."""
    parser = argparse.ArgumentParser(prog="scaling", description=__doc__)
    add_workload_options(parser)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args(arguments)
    workload = Workload(options)
    room = workload.spec.max_position_embeddings - 64
    sweeps: dict[str, Sequence[int]] = {
        name: [n for n in sizes if name != "trunk tokens" or n <= room]
        for name, sizes in SWEEPS.items()
    }
    with Engine(
        workload.folder,
        dtype=options.dtype,
        backend=options.backend,
        kv_cache_bytes=options.kv_cache_bytes,
        num_image_slots=2,
    ) as engine:
        seconds = run_sweeps(engine, sweeps, options.dtype, options.backend)
    document = {
        **head("scaling", f"Decode step of {options.model}", workload, measure_machine()),
        "sweeps": {
            name: {
                "sizes": list(sizes),
                "seconds": seconds[name],
                "fit": fitted_slope(sizes, seconds[name]),
            }
            for name, sizes in sweeps.items()
        },
    }
    finish(document, to_markdown(document), options, "scaling")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
