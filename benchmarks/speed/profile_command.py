"""`stagebeam profile`: latency per beam size by phase, measured here or predicted for a machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.speed.bench_command import (
    Workload,
    add_workload_options,
    finish,
    head,
    parse_lengths,
)
from stagebeam.benchmarks.speed.calibration import calibrate
from stagebeam.benchmarks.speed.contenders import BY_LOGITS, Contender, Contenders
from stagebeam.benchmarks.speed.costs import GPUS, Costs
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed, measure_machine
from stagebeam.benchmarks.speed.measure import MakeTasks, Rounds, measure, summarize
from stagebeam.benchmarks.speed.planner import predict
from stagebeam.benchmarks.speed.profile_table import plan_to_markdown, to_markdown
from stagebeam.benchmarks.speed.statistics import paired_ratio
from stagebeam.benchmarks.speed.trace import write_trace
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.params import SearchParams

CPU = "cpu"


def add_profile_parser(commands: Any) -> None:
    """`stagebeam profile`."""
    parser = commands.add_parser(
        "profile", help="measure (or predict) latency and memory for each beam size, by phase"
    )
    add_workload_options(parser)
    parser.add_argument("--beam-sizes", default="1,2,4,8,16", metavar="LIST")
    parser.add_argument("--dtype", default="float32", help="number format of the engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="per beam size, at the most")
    parser.add_argument(
        "--no-prediction", action="store_true", help="leave the planner's calibration out"
    )
    parser.add_argument(
        "--trace", type=Path, help="write one search at the largest beam size for Perfetto"
    )
    parser.add_argument(
        "--plan", action="store_true", help="predict from sizes alone; nothing is loaded or run"
    )
    parser.add_argument(
        "--gpu", default="h100", help=f"for --plan: {', '.join(GPUS)} or {CPU} (this machine)"
    )
    parser.set_defaults(run=run_profile)


def run_profile(options: argparse.Namespace) -> int:
    """Measure or predict; table to stdout, files where asked."""
    sizes = parse_beam_sizes(options.beam_sizes)
    if options.plan:
        return _plan(options, sizes)
    workload = Workload(options)
    speed = measure_machine()
    with Contenders(workload.folder, options.kv_cache_bytes, options.backend) as makers:
        ours = makers.make(f"ours-{options.dtype}")
        per_size = {f"N={n}": (ours, n) for n in sizes}
        records, spans = _measure(options, workload, per_size, speed)
    if options.trace:
        write_trace(spans, options.trace)
        print(f"wrote {options.trace}: open it at https://ui.perfetto.dev", file=sys.stderr)
    predictions = {}
    if not options.no_prediction:
        costs = calibrate(options.dtype, options.backend)
        predictions = {f"N={n}": _prediction(workload, costs, n, options.lengths) for n in sizes}
    document = {
        **head(
            "profile", f"{options.model}, {options.dtype}, latency per beam size", workload, speed
        ),
        "setting": {
            "dtype": options.dtype,
            "beam_sizes": sizes,
            "lengths": asdict(workload.lengths),
            "seed": options.seed,
        },
        "summary": summarize(records),
        "over_first": _over_first(records),
        "predictions": predictions,
        "records": records,
    }
    finish(document, to_markdown(document), options, "profile")
    return 0


def _measure(
    options: argparse.Namespace,
    workload: Workload,
    per_size: dict[str, tuple[Contender, int]],
    speed: MachineSpeed,
) -> tuple[dict[str, list[dict[str, Any]]], list[Any]]:
    """Beam sizes take turns as contenders do; the spans are the last search's at the largest."""
    contenders = [
        Contender(name=name, judge=c.judge, dtype=c.dtype, answer=c.answer, ours=c.ours)
        for name, (c, _) in per_size.items()
    ]

    def tasks(contender: Contender, seed: int, lengths: Any) -> list[Any]:
        search = SearchParams(beam_size=per_size[contender.name][1])
        return [workload.task(contender, search, options.seed + 1000 * seed, lengths)]

    make: MakeTasks = tasks
    records = measure(
        contenders,
        make,
        Rounds(rounds=options.rounds, seconds=options.seconds),
        workload.spec,
        speed,
        lambda line: print(line, file=sys.stderr),
    )
    if not options.trace:
        return records, []
    widest = max(contenders, key=lambda c: per_size[c.name][1])
    return records, widest.answer(tasks(widest, 0, None)).spans


def _over_first(records: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each beam size's latency without judging over the first's, round by round."""
    names = list(records)
    first = {row["round"]: _undisturbed(row) for row in records[names[0]]}
    ratios = {}
    for name in names:
        pairs = [
            (_undisturbed(row), first[row["round"]])
            for row in records[name]
            if row["round"] in first
        ]
        ratios[name] = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
    return ratios


def _undisturbed(row: dict[str, Any]) -> float:
    return row["seconds"] - row["phases"]["judge"]


def _prediction(workload: Workload, costs: Costs, n: int, lengths: str | None) -> dict[str, Any]:
    found = predict(workload.spec, costs, n, parse_lengths(lengths), BY_LOGITS, workload.plan)
    return {**asdict(found), "total": found.total}


def _plan(options: argparse.Namespace, sizes: list[int]) -> int:
    if options.gpu != CPU and options.gpu not in GPUS:
        raise InvalidInputError(
            f"--gpu must be {', '.join(GPUS)} or {CPU}, got {options.gpu!r}; a machine is described "
            "by its bandwidth, products and memory in benchmarks/speed/costs.py"
        )
    spec = (
        read_spec(Path(options.model)) if Path(options.model).is_dir() else Workload(options).spec
    )
    costs: Costs = (
        calibrate(options.dtype, options.backend) if options.gpu == CPU else GPUS[options.gpu]
    )
    lengths = parse_lengths(options.lengths)
    rows = [predict(spec, costs, n, lengths, BY_LOGITS) for n in sizes]
    document = {
        "schema_version": 1,
        "kind": "plan",
        "model": options.model,
        "machine": costs.name,
        "costs": asdict(costs),  # type: ignore[call-overload]
        "memory_bytes": costs.memory_bytes,
        "lengths": asdict(lengths),
        "predictions": [{**asdict(row), "total": row.total} for row in rows],
    }
    finish(document, plan_to_markdown(document), options, "plan")
    return 0


def parse_beam_sizes(text: str) -> list[int]:
    """Sizes from `1,2,4`, each once, as given."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words) or len(set(words)) != len(words):
        raise InvalidInputError(
            f"--beam-sizes must be different whole numbers >= 1 with commas, got {text!r}"
        )
    return [SearchParams(beam_size=int(word)).beam_size for word in words]
