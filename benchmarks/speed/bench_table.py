"""A benchmark's document as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stagebeam.benchmarks.speed.contenders import OURS
from stagebeam.benchmarks.speed.measure import PHASES


def to_markdown(document: dict[str, Any]) -> str:
    """The whole report of one `stagebeam bench`."""
    parts = [f"# Speed: {document['title']}", _setting(document)]
    parts += [_times(document), _phases(document), _latency(document), _memory(document)]
    parts += [_ratios(document), _skips(document), source_line(document)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(document: dict[str, Any]) -> str:
    s = document["setting"]
    lengths = s["lengths"]
    form = (
        "lengths as they fall"
        if lengths is None
        else (
            f"stages forced to {', '.join(map(str, lengths['stages']))} tokens, prompt "
            f"{lengths['prompt']}, judge prompts {lengths['judge_head']} + hints + two candidates + "
            f"{lengths['judge_tail']}, generated verdicts {lengths['verdict']}"
        )
    )
    return (
        f"{s['strategy']}, N={s['beam_size']}, {s['questions']} question(s) a round; {form}. "
        "Contenders alternate in one process; medians with 20th and 80th percentiles; ratios are "
        "taken within a round, with 95 % bootstrap intervals."
    )


def _times(document: dict[str, Any]) -> str:
    rows = []
    for name, s in document["summary"].items():
        rows.append(
            (
                name,
                s["rounds"],
                _spread(s["seconds"]),
                _value(s, "tokens_per_second", "{:.0f}"),
                _value(s, "tokens_per_second_per_branch", "{:.1f}"),
                _value(s, "tokens_per_second_end_to_end", "{:.0f}"),
                _value(s, "share_of_floor", "{:.0%}"),
            )
        )
    headings = (
        *("contender", "rounds", "seconds (p20-p80)", "decode tok/s", "per branch"),
        *("end-to-end tok/s", "of floor"),
    )
    return markdown_table(headings, rows)


def _phases(document: dict[str, Any]) -> str:
    rows = [
        (
            name,
            *(f"{s['phases'][phase]['median']:.3f}" for phase in PHASES),
            _value(s, "host_in_passes", "{:.3f}"),
        )
        for name, s in document["summary"].items()
    ]
    headings = ("contender", *PHASES, "host inside the passes")
    return "Seconds by phase:\n\n" + markdown_table(headings, rows)


def _latency(document: dict[str, Any]) -> str:
    rows = []
    for name, records in document["records"].items():
        summary = document["summary"].get(name)
        if not summary:
            continue
        itl = [record["itl"] for record in records if record["itl"]]
        middle = itl[len(itl) // 2] if itl else [0.0] * 4
        rows.append(
            (
                name,
                _value(summary, "ttft", "{:.1f}", 1000),
                _value(summary, "tpot", "{:.2f}", 1000),
                *(f"{1000 * value:.2f}" for value in middle[1:]),
            )
        )
    headings = ("contender", "TTFT ms", "TPOT ms", "ITL p50 ms", "p80", "p99")
    return markdown_table(headings, rows)


def _memory(document: dict[str, Any]) -> str:
    rows = []
    for name, s in document["summary"].items():
        rows.append(
            (
                name,
                _value(s, "decode_kv_bytes", "{:.2f}", 1e-6),
                _value(s, "ideal_kv_bytes", "{:.2f}", 1e-6),
                _value(s, "peak_kv_bytes", "{:.2f}", 1e-6),
                _value(s, "peak_blocks", "{:.0f}"),
                _value(s, "peak_blocks_unshared", "{:.0f}"),
                _value(s, "peak_rss_bytes", "{:.0f}", 1e-6),
                _value(s, "image_encodes", "{:.0f}"),
                _value(s, "judge_calls", "{:.0f}"),
                _value(s, "judge_prompt_tokens", "{:.0f}"),
            )
        )
    headings = (
        *("contender", "KV MB decoding", "one trunk + N tails + image", "KV MB peak with judging"),
        *("blocks", "without sharing", "process MB", "encodes", "judge calls", "judge tokens"),
    )
    return markdown_table(headings, rows)


def _ratios(document: dict[str, Any]) -> str:
    """Ours beside the others; all pairs where there is no other."""
    found = [r for r in document["ratios"] if not r["that"].startswith(OURS)] or document["ratios"]
    rows = [
        (r["this"], r["that"], *(_ratio(r.get(key)) for key in ("total", "decode", "judge")))
        for r in found
    ]
    if not rows:
        return ""
    return "Times faster:\n\n" + markdown_table(
        ("this", "than", "total (95 %)", "decoding", "judging"), rows
    )


def _skips(document: dict[str, Any]) -> str:
    return "\n".join(f"- {name} left out: {why}" for name, why in document["skipped"].items())


def source_line(document: dict[str, Any]) -> str:
    """Where the numbers come from."""
    machine, speed = document["machine"], document["machine_speed"]
    packages = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    model = document["model"]
    return (
        f"`{document['command']}`\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} threads, reads "
        f"{speed['bytes_per_second'] / 1e9:.1f} GB/s, float32 GEMM {speed['flops'] / 1e9:.0f} GFLOP/s; "
        f"{packages}; commit {document['commit'] or 'unknown'}; {document['date']}. Model "
        f"{model['path']}, sha256 {model['sha256'][:16]}."
    )


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3f} ({values['p20']:.3f}-{values['p80']:.3f})"


def _value(summary: dict[str, Any], key: str, form: str, scale: float = 1.0) -> str:
    return form.format(scale * summary[key]["median"]) if key in summary else ""


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    interval = ratio["interval"]
    between = f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else ""
    return f"{ratio['median']:.2f}{between}"


def markdown_table(headings: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Rows under headings."""
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
