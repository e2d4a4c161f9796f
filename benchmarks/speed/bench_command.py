"""`stagebeam bench`: this engine against HF `generate`, side by side."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.baselines.task import Lengths, Task, forced_task, free_task
from stagebeam.benchmarks.midsize import midsize_folder
from stagebeam.benchmarks.speed.bench_table import to_markdown
from stagebeam.benchmarks.speed.contenders import (
    DEFAULT_CONTENDERS,
    HF_JUDGES,
    SUFFIXES,
    Contender,
    Contenders,
)
from stagebeam.benchmarks.speed.costs import text_parameters
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed, measure_machine
from stagebeam.benchmarks.speed.measure import Rounds, measure, ratios, summarize
from stagebeam.benchmarks.speed.resume import Resumed
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT, find_checkpoint
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.models.loader import read_spec
from stagebeam.engine.models.processor import load_processor
from stagebeam.engine.params import SamplingParams, SearchParams, Strategy
from stagebeam.engine.stages import LLAVA_COT_PLAN, StagePlan

SCHEMA_VERSION = 1
BUNDLED, MIDSIZE = "bundled", "midsize"
EXAMPLES = BUNDLED_CHECKPOINT.parent / "examples"
INCOMPLETE = 3  # exit code of a measurement whose time ended before its rounds
_MIB = 1 << 20

logger = logging.getLogger(__name__)


def add_bench_parser(commands: Any) -> None:
    """`stagebeam bench`: contenders in turns."""
    parser = commands.add_parser(
        "bench", help="measure speed and memory against HF generate, side by side"
    )
    add_workload_options(parser)
    parser.add_argument(
        "--contenders",
        default=",".join(DEFAULT_CONTENDERS),
        metavar="LIST",
        help=f"{', '.join(HF_JUDGES)}, ours-DTYPE with any of -{', -'.join(SUFFIXES)}",
    )
    parser.add_argument(
        "--strategy", choices=[s for s in get_args(Strategy) if s != "swires"], default="stage_beam"
    )
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument("--questions", type=int, default=1, help="answered together in a round")
    add_round_options(parser, rounds=5)
    parser.add_argument(
        "--free",
        action="store_true",
        help="let answers end by themselves instead of forcing lengths",
    )
    parser.set_defaults(run=run_bench)


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Options that `bench` and `profile` share."""
    parser.add_argument(
        "--model",
        default=BUNDLED,
        help=f"{BUNDLED}, {MIDSIZE} (built on first use), or a HF folder",
    )
    parser.add_argument("--backend", default="auto", help="kernels of this engine")
    parser.add_argument("--kv-cache-bytes", type=int, default=512 * _MIB)
    parser.add_argument("--image", default=str(EXAMPLES / "scene.png"))
    parser.add_argument("--question", help="for --free; default: the bundled example's")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument(
        "--lengths", metavar="A,B,C,D", help="forced tokens a stage (default: 60,110,170,20)"
    )
    parser.add_argument("--output", type=Path, help="folder for JSON, Markdown and PNG")
    parser.add_argument("--json", action="store_true", help="print the document, not the table")


def add_round_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """How long a measurement in rounds goes on."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="a contender that has run this long sits the later rounds out",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help=f"end by then with exit code {INCOMPLETE}; the same command with the same --output goes on",
    )


def run_bench(options: argparse.Namespace) -> int:
    """Measure, print, and write where asked."""
    workload = Workload(options)
    title = f"{options.model}, {options.strategy} N={options.beam_size}"
    setting = {
        "contenders": [name.strip() for name in options.contenders.split(",")],
        "strategy": options.strategy,
        "beam_size": options.beam_size,
        "questions": options.questions,
        "temperature": options.temperature,
        "seed": options.seed,
        "lengths": None if options.free else asdict(workload.lengths),
    }
    speed = measure_machine()
    new = head("bench", f"{title}, {options.questions} question(s)", workload, speed)
    run = Resumed({**new, "setting": setting}, options, "bench")
    skipped: dict[str, str] = {}
    search = SearchParams(strategy=options.strategy, beam_size=options.beam_size)

    def tasks(contender: Contender, seed: int, lengths: Lengths | None) -> list[Task]:
        return [
            workload.task(contender, search, options.seed + 1000 * seed + i, lengths, options.free)
            for i in range(options.questions)
        ]

    with Contenders(workload.folder, options.kv_cache_bytes, options.backend) as makers:
        names = []
        for name in setting["contenders"]:
            try:
                makers.check(name)
                names.append(name)
            except ValueError as error:
                if name not in DEFAULT_CONTENDERS:
                    raise
                skipped[name] = str(error)
        records = run.records(names)
        is_complete = measure(
            names,
            makers.make,
            tasks,
            Rounds(rounds=options.rounds, seconds=options.seconds, budget=options.budget),
            workload.spec,
            speed,
            records,
            run.save,
        )
    document = {
        **run.document,
        "skipped": skipped,
        "summary": summarize(records),
        "ratios": ratios(records),
    }
    if is_complete:
        finish(document, to_markdown(document), options, "bench")
    return 0 if is_complete else INCOMPLETE


class Workload:
    """The model and the tasks that a command's options describe."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = model_folder(options.model)
        self.spec = read_spec(self.folder)
        self.processor = load_processor(self.folder, self.spec)
        plan = self.processor.stage_plan
        self.plan = LLAVA_COT_PLAN if plan is None else StagePlan.from_dict(plan)
        self.lengths = parse_lengths(options.lengths)
        self.image = options.image if self.spec.vision else None
        self.sampling = SamplingParams(temperature=options.temperature)
        self.question = options.question or (EXAMPLES / "scene.txt").read_text("utf-8").strip()

    def task(
        self,
        contender: Contender,
        search: SearchParams,
        seed: int,
        lengths: Lengths | None = None,
        is_free: bool = False,
    ) -> Task:
        """One task; `lengths` overrides the workload's own, and then nothing is free."""
        sampling = replace(self.sampling, seed=seed)
        if is_free and lengths is None:
            return free_task(
                self.processor,
                self.question,
                self.image,
                plan=self.plan,
                search=search,
                sampling=replace(sampling, max_tokens=512),
                judge=replace(contender.judge, sampling=replace(sampling, max_tokens=128)),
                add_bos=self.processor.default_add_bos,
            )
        return forced_task(
            self.processor,
            self.image,
            lengths=lengths or self.lengths,
            plan=self.plan,
            search=search,
            sampling=sampling,
            judge=contender.judge,
            image_id=self.spec.image_token_id,
        )


def model_folder(name: str) -> Path:
    """The folder of `bundled`, `midsize` or a path."""
    if name == BUNDLED:
        return BUNDLED_CHECKPOINT
    return midsize_folder() if name == MIDSIZE else find_checkpoint(name)


def parse_lengths(text: str | None) -> Lengths:
    """Forced stage lengths from `60,110,170,20`; None is the default."""
    if text is None:
        return Lengths()
    try:
        stages = tuple(int(word) for word in text.split(","))
    except ValueError:
        stages = ()
    if not stages or min(stages) < 1:
        raise InvalidInputError(f"--lengths must be whole numbers >= 1 with commas, got {text!r}")
    return Lengths(stages=stages)


def head(kind: str, title: str, workload: Workload, speed: MachineSpeed) -> dict[str, Any]:
    """What every document says of itself."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "title": title,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": provenance.command(),
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "machine_speed": asdict(speed),
        "versions": provenance.versions(),
        "model": provenance.model(workload.folder),
        "sizes": {
            "decode_parameters": workload.spec.num_decode_parameters,
            "prefill_parameters": text_parameters(workload.spec),
        },
    }


def finish(document: dict[str, Any], table: str, options: argparse.Namespace, name: str) -> None:
    """Print the table or the document; write both and the plot where --output says."""
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        (options.output / f"{name}.md").write_text(table, "utf-8")
        draw(document, options.output / f"{name}.png")
        print(f"wrote {name}.json and .md in {options.output}", file=sys.stderr)
    print(json.dumps(document) if options.json else table)


def draw(document: dict[str, Any], path: Path) -> None:
    """The document's plot, where its kind has one and matplotlib is installed."""
    name = f"stagebeam.benchmarks.speed.{document['kind']}_plot"
    if find_spec(name) is None:
        return
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        logger.warning("no plot: %s; pip install 'stagebeam[train]'", error)
        return
    getattr(module, f"draw_{document['kind']}")([document], path)
