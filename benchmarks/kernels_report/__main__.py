"""`make kernels-report`: compile every GPU kernel for every target, hold it to the rules, write it up.

Exits with 1 where a rule or a budget of the golden file is broken. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from stagebeam.benchmarks.kernels_report import configurations, cuda_sources, rules, table
from stagebeam.benchmarks.kernels_report.compiling import compile_all
from stagebeam.benchmarks.kernels_report.roofline import step_roofs
from stagebeam.benchmarks.provenance import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/kernels")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--update-golden", action="store_true", help="take what was compiled for the budgets"
    )
    options = parser.parse_args(arguments)
    kernels = compile_all(configurations.variants())
    reason = cuda_sources.why_unavailable()
    notes = [] if reason is None else [f"Left out: {reason}."]
    if reason is None:
        kernels += cuda_sources.compile_cuda_sources()
    if options.update_golden:
        rules.write_budgets(kernels)
    budgets = rules.read_budgets()
    if reason is not None:
        budgets = {key: of for key, of in budgets.items() if not key.startswith("CUDA ")}
    broken = [line for kernel in kernels for line in rules.broken_rules(kernel)]
    broken += [line for kernel in kernels for line in rules.over_budget(kernel, budgets)]
    broken += rules.stale(kernels, budgets)
    if not options.check:
        roofs = {num_rows: step_roofs(num_rows) for num_rows in configurations.BEAM_SIZES}
        versions = {"triton": triton.__version__, "torch": torch.__version__}
        options.output.mkdir(parents=True, exist_ok=True)
        document = table.document(kernels, roofs, notes, versions)
        text = json.dumps(document, indent=1)
        (options.output / "kernels.json").write_text(text + "\n", encoding="utf-8")
        page = table.markdown(kernels, roofs, notes)
        (options.output / "kernels.md").write_text(page, encoding="utf-8")
        print(f"report: {options.output / 'kernels.md'}")
    for line in (*notes, *broken):
        print(line, file=sys.stderr)
    print(f"{len(kernels)} compiled kernels, {len(broken)} broken rules")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
