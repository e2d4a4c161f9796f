"""The race's result as text."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Markdown: a section a part, its numbers as they were measured."""
    lines: list[str] = []
    for name, part in result["parts"].items():
        low, high = (value / 1e9 for value in part["bandwidth_bytes_per_second"])
        lines += ["", f"### {name} ({part['isa']}, reads {low:.1f} and {high:.1f} GB/s)", ""]
        measured = part["result"]
        if name == "decode":
            lines += _decode(measured["summary"])
        elif name == "prefill":
            lines += ["| | seconds | HF float32 over it |", "|---|---|---|"]
            for key, seconds in measured["seconds"].items():
                ratio = measured["hf_over"].get(key)
                over = f"{ratio['median']:.2f}" if ratio else ""
                lines.append(f"| {key} | {seconds['median']:.3f} | {over} |")
        elif name == "gemm":
            for key, rate in measured["multiply_adds_per_second"].items():
                lines.append(f"- {key}: {rate / 1e9:.0f} G multiply-adds a second")
        elif name == "instructions":
            if "skipped" in measured:
                lines.append(f"Skipped: {measured['skipped']}")
            for key, count in measured.get("instructions", {}).items():
                lines.append(f"- {key}: {count:,} instructions (AVX2)")
        elif name == "trunk":
            lines.append(f"- KV bytes read / least possible: {measured['ratio']:.3f}")
        else:
            lines += _engines(measured)
    return "\n".join(lines)


def _decode(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| format | branches | step ms (20-80 %) | tokens/s | % of floor | over 1 branch "
        "| over max(bytes, products) |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        s = {key: 1000 * value for key, value in row["step_seconds"].items()}
        lines.append(
            f"| {row['format']} | {row['branches']} | {s['median']:.2f} "
            f"({s['p20']:.2f}-{s['p80']:.2f}) | {row['tokens_per_second']:.0f} | "
            f"{row['percent_of_floor']:.0f} | {row['over_one_branch']['median']:.2f} | "
            f"{row['over_bound']:.2f} |"
        )
    return lines


def _engines(measured: dict[str, Any]) -> list[str]:
    lines = ["| batch | engine | tokens/s (20-80 %) |", "|---|---|---|"]
    for batch, part in measured.items():
        for name, s in part["tokens_per_second"].items():
            lines.append(
                f"| {batch} | {name} | {s['median']:.0f} ({s['p20']:.0f}-{s['p80']:.0f}) |"
            )
    lines += ["", "| batch | ratio | median |", "|---|---|---|"]
    for batch, part in measured.items():
        for name, ratio in part["ours_over"].items():
            lines.append(f"| {batch} | {name} | {ratio['median']:.2f} |")
    return lines
