"""`stagebeam profile`: latency per beam size by phase, measured here or predicted for a machine."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.speed.bench_command import (
    INCOMPLETE,
    SCHEMA_VERSION,
    Workload,
    add_round_options,
    add_workload_options,
    finish,
    head,
    parse_lengths,
)
from stagebeam.benchmarks.speed.calibration import calibrate
from stagebeam.benchmarks.speed.contenders import BY_LOGITS, Contender, Contenders
from stagebeam.benchmarks.speed.costs import GPUS, Costs
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed, measure_machine
from stagebeam.benchmarks.speed.measure import Records, Rounds, measure, summarize
from stagebeam.benchmarks.speed.planner import predict
from stagebeam.benchmarks.speed.profile_table import plan_to_markdown, to_markdown
from stagebeam.benchmarks.speed.resume import Resumed
from stagebeam.benchmarks.speed.statistics import paired_ratio
from stagebeam.benchmarks.speed.trace import write_trace
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.models.spec import ModelSpec
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
    add_round_options(parser, rounds=3)
    parser.add_argument(
        "--no-judging", action="store_true", help="commit each stage's first candidate instead"
    )
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
        "--gpu",
        default="h100",
        metavar="LIST",
        help=f"for --plan: of {', '.join(GPUS)} and {CPU} (this machine)",
    )
    parser.set_defaults(run=run_profile)


def run_profile(options: argparse.Namespace) -> int:
    """Measure or predict; table to stdout, files where asked."""
    sizes = parse_beam_sizes(options.beam_sizes)
    if options.plan:
        return _plan(options, sizes)
    workload = Workload(options)
    if options.no_judging:
        stages = tuple(replace(stage, is_judged=False) for stage in workload.plan.stages)
        workload.plan = replace(workload.plan, stages=stages)
    speed = measure_machine()
    title = f"{options.model}, {options.dtype}, latency per beam size"
    setting = {
        "dtype": options.dtype,
        "beam_sizes": sizes,
        "has_judging": not options.no_judging,
        "lengths": asdict(workload.lengths),
        "seed": options.seed,
    }
    run = Resumed(
        {**head("profile", title, workload, speed), "setting": setting}, options, "profile"
    )
    if not _measure(options, workload, sizes, speed, run):
        return INCOMPLETE
    records = run.document["records"]
    predictions = {}
    if not options.no_prediction:
        costs = calibrate(options.dtype, options.backend)
        predictions = {f"N={n}": _prediction(workload, costs, n, options.lengths) for n in sizes}
    document = {
        **run.document,
        "summary": summarize(records),
        "over_first": _over_first(records),
        "predictions": predictions,
    }
    finish(document, to_markdown(document), options, "profile")
    return 0


def _measure(
    options: argparse.Namespace,
    workload: Workload,
    sizes: Sequence[int],
    speed: MachineSpeed,
    run: Resumed,
) -> bool:
    """Beam sizes take turns as contenders do; then one search at the largest for the trace."""
    size_of = {f"N={n}": n for n in sizes}

    def tasks(contender: Contender, seed: int, lengths: Any) -> list[Any]:
        search = SearchParams(beam_size=size_of[contender.name])
        return [workload.task(contender, search, options.seed + 1000 * seed, lengths)]

    with Contenders(workload.folder, options.kv_cache_bytes, options.backend) as makers:

        def make(name: str) -> Contender:
            return replace(makers.make(f"ours-{options.dtype}"), name=name)

        is_complete = measure(
            list(size_of),
            make,
            tasks,
            Rounds(rounds=options.rounds, seconds=options.seconds, budget=options.budget),
            workload.spec,
            speed,
            run.records(list(size_of)),
            run.save,
        )
        if is_complete and options.trace:
            widest = make(max(size_of, key=lambda name: size_of[name]))
            write_trace(widest.answer(tasks(widest, 0, None)).spans, options.trace)
            print(f"wrote {options.trace}: open it at https://ui.perfetto.dev", file=sys.stderr)
    return is_complete


def _over_first(records: Records) -> dict[str, Any]:
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
    machines = [name.strip() for name in options.gpu.split(",")]
    if not {*machines} <= {CPU, *GPUS}:
        raise InvalidInputError(
            f"--gpu must be of {', '.join(GPUS)} and {CPU}, got {options.gpu!r}; a machine is described "
            "by its bandwidth, products and memory in benchmarks/speed/costs.py"
        )
    spec, lengths, plans = _spec(options), parse_lengths(options.lengths), []
    for machine in machines:
        costs: Costs = (
            calibrate(options.dtype, options.backend) if machine == CPU else GPUS[machine]
        )
        rows = [predict(spec, costs, n, lengths, BY_LOGITS) for n in sizes]
        plans.append(
            {
                "machine": costs.name,
                "costs": asdict(costs),  # type: ignore[call-overload]
                "memory_bytes": costs.memory_bytes,
                "predictions": [{**asdict(row), "total": row.total} for row in rows],
            }
        )
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "plan",
        "title": f"Predicted: {Path(options.model).stem}",
        "model": options.model,
        "command": provenance.command(),
        "commit": provenance.commit(),
        "lengths": asdict(lengths),
        "plans": plans,
    }
    finish(document, plan_to_markdown(document), options, "plan")
    return 0


def _spec(options: argparse.Namespace) -> ModelSpec:
    """The sizes of a model, a HF folder or a config file alone."""
    path = Path(options.model)
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(path, Path(folder) / "config.json")
            return read_spec(Path(folder))
    return read_spec(path) if path.is_dir() else Workload(options).spec


def parse_beam_sizes(text: str) -> list[int]:
    """Sizes from `1,2,4`, each once, as given."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words) or len(set(words)) != len(words):
        raise InvalidInputError(
            f"--beam-sizes must be different whole numbers >= 1 with commas, got {text!r}"
        )
    return [SearchParams(beam_size=int(word)).beam_size for word in words]
