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
from stagebeam.benchmarks.speed.contenders import ONE_ORDER, PUBLISHED, SAMPLED, STRONG
from stagebeam.benchmarks.speed.report import CASES, RESULTS, read_document
from stagebeam.benchmarks.speed.speed_bars import FORMATS, Documents, check_bars, interval
from stagebeam.benchmarks.speed.speed_bounds import prompt_seconds

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
    for orders, suffix in (("both orders", ""), ("one order", ONE_ORDER)):
        by_logits, generated = f"ours-bfloat16{suffix}", f"ours-bfloat16-generate{suffix}"
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
        products = prompt_seconds(document, tokens)
        lines.append(
            f"- {orders}: {ratio['median']:.2f} times as fast{interval(ratio)}: {logits:.2f} s of prompts "
            f"({tokens:.0f} tokens, {1e6 * logits / tokens:.0f} us each; their products take "
            f"{1e6 * products / tokens:.0f} us at the float32 library's speed) against {spoken:.2f} s; "
            f"the {spoken - logits:.2f} s between them are the steps that write the verdicts. The "
            f"prompts are read by both, so only a faster product makes the ratio larger."
        )
    return "\n".join(
        [
            "Judging by logits against the same matches with generated verdicts, gate off:",
            "",
            *lines,
        ]
    )


def readme_text(documents: Documents) -> str:
    """A row a contender: seconds a question for both models, each match judged in one order and in both."""
    cases = [name for name in ("bundled", "midsize") if name in documents]
    if not cases:
        return "Nothing has been measured yet: `make bench-report`."
    names = {PUBLISHED: "HF `generate`, as published", STRONG: "HF, batched, caches kept"}
    names |= {f"ours-{dtype}": f"stagebeam, {dtype}" for dtype in FORMATS}
    headings, rivals = [""], []
    for case in cases:
        headings += [
            f"{case}, one order (times the published)",
            "both orders (times batched HF)",
        ]
        rivals += [(case, ONE_ORDER, PUBLISHED), (case, "", STRONG)]
    rows = [
        (title, *(_cell(documents[case], name, orders, rival) for case, orders, rival in rivals))
        for name, title in names.items()
    ]
    document = documents[cases[0]]
    machine, lengths = document["machine"], document["setting"]["lengths"]
    return "\n\n".join(
        [
            markdown_table(headings, [row for row in rows if any(row[1:])]),
            f"Seconds a question: stage-level beam search, N=4, stages of "
            f"{', '.join(map(str, lengths['stages']))} tokens, every match judged in one order (as "
            f"published) or in both (our default); HF in float32; medians of rounds in turns on "
            f"{machine['cores']} cores ({machine['cpu']}), commit {document['commit']}. `make bench-report`; [docs/benchmarks.md](docs/benchmarks.md) "
            "has the method, every number and what is missed.",
            "![Seconds by phase](docs/speed.png)",
        ]
    )


def _cell(document: dict[str, Any], name: str, orders: str, rival: str) -> str:
    """Seconds, and in brackets how many times faster than the rival in the same orders."""
    entrants = {n.removesuffix(SAMPLED): n for n in document["summary"]}
    if name == PUBLISHED and not orders:
        return ""
    entrant = entrants.get(name if name == PUBLISHED else name + orders)
    against = entrants.get(rival)
    if entrant is None:
        return ""
    text = f"{document['summary'][entrant]['seconds']['median']:.2f}"
    for r in document["ratios"]:
        if (r["this"], r["that"]) == (entrant, against):
            text += f" ({r['total']['median']:.1f}x)"
    return text


if __name__ == "__main__":
    raise SystemExit(main())
