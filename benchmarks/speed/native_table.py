"""The race's parts as Markdown tables, their numbers as they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagebeam.benchmarks.accuracy.table import markdown_table
from stagebeam.benchmarks.speed.native_engines import BATCHES, EQUAL_BITS, name_of
from stagebeam.benchmarks.speed.native_summary import OURS

Parts = Mapping[str, dict[str, Any]]


def decode_table(part: dict[str, Any]) -> str:
    rows = []
    for row in part["result"]["rows"]:
        s = {key: 1000 * value for key, value in row["step_seconds"].items()}
        floor, reads = row["percent_of_floor"], row["bandwidth"]
        rows.append(
            (
                row["format"],
                row["branches"],
                f"{s['median']:.2f} ({s['p20']:.2f}-{s['p80']:.2f})",
                f"{row['tokens_per_second']:.0f}",
                f"{floor['median']:.0f} ({floor['p20']:.0f}-{floor['p80']:.0f})",
                f"{row['over_one_branch']['median']:.2f}",
                f"{row['over_bound']['median']:.2f}",
                f"{reads['p20'] / 1e9:.0f}-{reads['p80'] / 1e9:.0f}",
            )
        )
    headings = (
        *("format", "branches", "step ms (20-80 %)", "tokens/s", "% of floor (20-80 %)"),
        *("over one branch", "over bytes or products", "reads GB/s"),
    )
    return markdown_table(headings, rows)


def gemm_and_prefill_table(parts: Parts) -> str:
    """A row a format: products of 128 rows, and a prompt to its first token."""
    rates = parts["gemm"]["result"]["best"] if "gemm" in parts else {}
    prefill = parts["prefill"]["result"]["seconds"] if "prefill" in parts else {}
    over = parts["prefill"]["result"]["ours_over"] if "prefill" in parts else {}
    rows = []
    for name in dict.fromkeys([*(n.removeprefix(OURS) for n in prefill), *rates]):
        ours = f"{OURS}{name}"
        seconds = prefill.get(ours, prefill.get(name))
        ratio = over.get(f"{ours} / HF float32")
        rows.append(
            (
                name,
                f"{rates[name] / 1e9:.0f}" if name in rates else "",
                f"{1000 * seconds['median']:.0f}" if seconds else "",
                f"{ratio['median']:.2f}" if ratio else "",
            )
        )
    headings = "", "G multiply-adds/s, 128 rows", "prefill ms", "HF float32 over it"
    return markdown_table(headings, rows)


def engines_table(parts: Parts) -> str:
    """A row an engine and batch: tokens a second of both, and ours over the engine's."""
    rows = []
    for name in [name_of(engine, batch) for engine in EQUAL_BITS for batch in BATCHES]:
        if name not in parts:
            continue
        result, batch = parts[name]["result"], name.rpartition("batch")[2]
        for pair, ratio in result["ours_over"].items():
            ours, other = pair.split(" / ")
            rates = result["tokens_per_second"]
            rows.append(
                (batch, other, _spread(rates[other]), ours, _spread(rates[ours]), _ratio(ratio))
            )
    headings = "batch", "engine", "tokens/s (20-80 %)", "", "tokens/s (20-80 %)", "times (95 %)"
    return markdown_table(headings, rows)


def instructions_table(part: dict[str, Any]) -> str:
    result = part["result"]
    if "skipped" in result:
        return f"Not counted: {result['skipped']}."
    counts = {tuple(case.split(":")): count for case, count in result["instructions"].items()}
    kernels = dict.fromkeys((kernel, name) for kernel, name, _ in counts)
    sizes = list(dict.fromkeys(rows for *_, rows in counts))
    body = [
        (kernel, name, *(f"{counts[kernel, name, rows]:,}" for rows in sizes))
        for kernel, name in kernels
    ]
    headings = ("kernel", "format", *(f"{rows} row{'s' if rows != '1' else ''}" for rows in sizes))
    return markdown_table(headings, body)


def _spread(s: dict[str, float]) -> str:
    return f"{s['median']:.0f} ({s['p20']:.0f}-{s['p80']:.0f})"


def _ratio(ratio: dict[str, Any]) -> str:
    text = f"{ratio['median']:.2f}"
    if ratio["interval"] is None:
        return text
    low, high = ratio["interval"]
    return f"{text} ({low:.2f}-{high:.2f})"
