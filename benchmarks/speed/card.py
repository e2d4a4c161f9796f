"""The report's numbers, written into the documents: `python -m stagebeam.benchmarks.speed.card`.

docs/benchmarks.md gets the bars and every case's table and plot between its marks, README.md a small
table and one plot between its own; `--print` shows both and writes nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.accuracy.card import replace_between_marks
from stagebeam.benchmarks.speed.bench_table import markdown_table
from stagebeam.benchmarks.speed.report import CASES, RESULTS, read_document
from stagebeam.benchmarks.speed.speed_bars import FORMATS, Documents, check_bars, interval

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = {True: "yes", False: "**no**", None: ""}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both documents, and say how many bars hold."""
    parser = argparse.ArgumentParser(prog="card", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true", help="print and write nothing")
    options = parser.parse_args(arguments)
    documents = {
        name: document
        for name in CASES
        if (document := read_document(options.results / name)) is not None
    }
    report, summary = report_text(documents, options.results), readme_text(documents)
    if options.print:
        print(report, summary, sep="\n\n")
        return 0
    try:
        for path, text in ((ROOT / "docs/benchmarks.md", report), (ROOT / "README.md", summary)):
            path.write_text(replace_between_marks(path.read_text("utf-8"), text, path), "utf-8")
    except ValueError as error:
        print(f"card: {error}", file=sys.stderr)
        return 2
    if "bundled" in documents:
        shutil.copy(options.results / "bundled" / "bench.png", ROOT / "docs" / "speed.png")
    bars = check_bars(documents)
    print(
        f"wrote docs/benchmarks.md and README.md: {sum(b.holds is True for b in bars)} of {len(bars)}"
        " bars hold"
    )
    return 0


def report_text(documents: Documents, results: Path) -> str:
    """The bars, then what each case's own table says, under its heading."""
    bars = [(b.name, b.wanted, b.measured, VERDICTS[b.holds]) for b in check_bars(documents)]
    parts = [markdown_table(("", "wanted", "measured", "holds"), bars)]
    if "judging" in documents:
        parts.append(judging_text(documents["judging"]))
    for name in documents:
        table = next((results / name).glob("*.md"))
        body = table.read_text("utf-8").removeprefix("#").replace("\n# ", "\n### ")
        parts.append(f"###{body}".rstrip())
        picture = table.with_suffix(".png")
        if picture.exists() and results == RESULTS:
            parts.append(f"![{name}](../{picture.relative_to(ROOT).as_posix()})")
    return "\n\n".join(parts)


def judging_text(document: dict[str, Any]) -> str:
    """Verdicts by logits against generated ones, with the arithmetic that bounds the ratio."""
    lines = []
    for orders, by_logits, generated in (
        ("both orders", "ours-bfloat16-played", "ours-bfloat16-generate-played"),
        (
            "one order",
            "ours-bfloat16-one-order-played",
            "ours-bfloat16-generate-one-order-played",
        ),
    ):
        summary = document["summary"]
        ratio = next(
            (
                r["judge"]
                for r in document["ratios"]
                if (r["this"], r["that"]) == (by_logits, generated)
            ),
            None,
        )
        if ratio is None:
            continue
        logits, spoken = (
            summary[name]["phases"]["judge"]["median"] for name in (by_logits, generated)
        )
        tokens = summary[by_logits]["judge_prompt_tokens"]["median"]
        lines.append(
            f"- {orders}: {ratio['median']:.2f} times as fast{interval(ratio)}: {logits:.2f} s of prompts "
            f"({tokens:.0f} tokens, {1e6 * logits / tokens:.0f} us each) against {spoken:.2f} s; the "
            f"{spoken - logits:.2f} s between them are the steps that write the verdicts. Reading the "
            f"prompts is common to both, so no faster step makes the ratio more than it is, and a "
            f"faster product does."
        )
    return "\n".join(
        [
            "Judging by logits against the same matches with generated verdicts, gate off:",
            "",
            *lines,
        ]
    )


def readme_text(documents: Documents) -> str:
    """One row a contender: seconds a question and times faster, for both models."""
    cases = [name for name in ("bundled", "midsize") if name in documents]
    if not cases:
        return "Nothing has been measured yet: `make bench-report`."
    names = {"hf-published": "HF `generate`, as published", "hf-strong": "HF, batched, caches kept"}
    names["hf-published-sampled"] = names["hf-published"]
    names |= {f"ours-{dtype}": f"stagebeam, {dtype}" for dtype in FORMATS}
    rows: dict[str, list[str]] = {}
    for place, case in enumerate(cases):
        for name, s in documents[case]["summary"].items():
            row = rows.setdefault(names[name], [""] * 3 * len(cases))
            row[3 * place] = f"{s['seconds']['median']:.2f}"
            for offset, rival in enumerate(("hf-published", "hf-strong"), start=1):
                for r in documents[case]["ratios"]:
                    if r["this"] == name and r["that"].removesuffix("-sampled") == rival:
                        row[3 * place + offset] = f"{r['total']['median']:.1f}x"
    headings = [""]
    for case in cases:
        headings += [f"{case}, s a question", "than published", "than batched HF"]
    document = documents[cases[0]]
    machine, lengths = document["machine"], document["setting"]["lengths"]
    return "\n\n".join(
        [
            markdown_table(headings, [(name, *cells) for name, cells in rows.items()]),
            f"Stage-level beam search, N=4, one question, stages of {', '.join(map(str, lengths['stages']))} "
            f"tokens; HF in float32; medians of rounds in turns on {machine['cores']} cores ({machine['cpu']}), "
            f"commit {document['commit']}. `make bench-report`; [docs/benchmarks.md](docs/benchmarks.md) "
            "has the method, every number and what is missed.",
            "![Seconds by phase](docs/speed.png)",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
