"""The native race's numbers, written into docs/native.md: `python -m stagebeam.benchmarks.speed.native_card`.

What stands between the document's marks is replaced by the bars and the parts' tables, from
benchmarks/results/native and native-avx2; `--print` shows it and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.accuracy.card import replace_between_marks
from stagebeam.benchmarks.accuracy.table import markdown_table
from stagebeam.benchmarks.speed.native_bars import check_bars
from stagebeam.benchmarks.speed.native_race import RESULTS
from stagebeam.benchmarks.speed.native_result import PEERS, read_result
from stagebeam.benchmarks.speed.native_table import (
    decode_table,
    engines_table,
    gemm_and_prefill_table,
    instructions_table,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "native.md"
AVX2_RESULTS = RESULTS.with_name("native-avx2")
_VERDICTS = {True: "yes", False: "**no**", None: ""}
Parts = Mapping[str, dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document, and say how many bars hold."""
    parser = argparse.ArgumentParser(prog="native_card", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--avx2-results", type=Path, default=AVX2_RESULTS)
    parser.add_argument("--into", type=Path, default=DOCUMENT)
    parser.add_argument("--print", action="store_true", help="print and write nothing")
    options = parser.parse_args(arguments)
    parts = read_result(options.results)
    text = card(parts, read_result(options.avx2_results))
    if options.print:
        print(text)
        return 0
    try:
        document = replace_between_marks(options.into.read_text("utf-8"), text, options.into)
    except ValueError as error:
        print(f"native_card: {error}", file=sys.stderr)
        return 2
    options.into.write_text(document, "utf-8")
    bars = check_bars(parts)
    print(
        f"wrote {options.into}: {sum(bar.holds is True for bar in bars)} of {len(bars)} bars hold"
    )
    return 0


def card(parts: Parts, avx2: Parts) -> str:
    """The bars, every part's table, and AVX2's."""
    bars = [(b.name, b.wanted, b.measured, _VERDICTS[b.holds]) for b in check_bars(parts)]
    sections = [markdown_table(("", "wanted", "measured", "holds"), bars), *_steps(parts)]
    if any("batch" in name for name in parts):
        sections += [
            "Decoding beside other engines, at equal bits of weight:",
            engines_table(parts),
        ]
    if "instructions" in parts:
        sections += [
            "Instructions of one call (AVX2 kernels, under valgrind: 3,072 x 576 weights, and one "
            "layer's attention to 512 shared tokens and 32 of each row's own):",
            instructions_table(parts["instructions"]),
        ]
    sections += _steps(avx2)
    return "\n\n".join([*sections, source([*parts.items(), *avx2.items()])])


def _steps(parts: Parts) -> list[str]:
    """Decode steps, products and prefill on one instruction set."""
    sections = []
    if "decode" in parts:
        part = parts["decode"]
        sections += [f"Steps after {part['settings']['prompt']} tokens, {part['isa']}:"]
        sections += [decode_table(part)]
    if "gemm" in parts or "prefill" in parts:
        isa = parts["gemm" if "gemm" in parts else "prefill"]["isa"]
        sections += [f"Products and prefill, {isa}:", gemm_and_prefill_table(parts)]
    return sections


def source(parts: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Where the numbers come from; parts that differ in it stand apart."""
    machines: dict[str, dict[str, list[str]]] = {}
    for name, part in parts:
        settings, machine, versions = part["settings"], part["machine"], part["versions"]
        packages = ", ".join(f"{p} {versions[p]}" for p in ("torch", "transformers", *PEERS))
        place = f"{settings['threads']} threads on {machine['cores']} cores ({machine['cpu']}), {packages}"
        rounds = len({record["round"] for record in part["records"]})
        run = (
            f"{part['isa']}, {rounds} round{'s' if rounds > 1 else ''} of {settings['tokens']} "
            f"tokens after {settings['prompt']}, commit {part['commit']}"
        )
        machines.setdefault(place, {}).setdefault(run, []).append(name)
    texts = []
    for place, runs in machines.items():
        lines = [f"- {run}: {', '.join(names)}." for run, names in runs.items()]
        texts.append("\n".join([f"Measured with {place}:", "", *lines]))
    return "\n\n".join(texts)


if __name__ == "__main__":
    raise SystemExit(main())
