"""A profile's document, measured or predicted, as Markdown."""

from __future__ import annotations

from typing import Any

from stagebeam.benchmarks.speed.bench_table import markdown_table, source_line
from stagebeam.benchmarks.speed.measure import PHASES


def to_markdown(document: dict[str, Any]) -> str:
    """A measured profile."""
    setting = document["setting"]
    judging = "judging by logits in both orders" if setting["has_judging"] else "nothing is judged"
    intro = (
        f"One question at a time, stage-level beam search, stages forced to "
        f"{', '.join(map(str, setting['lengths']['stages']))} tokens; {judging}. Seconds are medians; "
        "beam sizes alternate."
    )
    rows = []
    for name, summary in document["summary"].items():
        over = document["over_first"][name]
        interval = over["interval"]
        between = f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else ""
        prediction = document["predictions"].get(name)
        step = summary["tpot"]["median"]
        rows.append(
            (
                name,
                f"{summary['seconds']['median']:.3f}",
                *(f"{summary['phases'][phase]['median']:.3f}" for phase in PHASES),
                f"{over['median']:.2f}{between}",
                f"{1000 * step:.2f}",
                f"{summary['share_of_floor']['median']:.0%}",
                f"{1000 * prediction['step_seconds']:.2f}" if prediction else "",
                f"{prediction['step_seconds'] / step - 1:+.0%}" if prediction else "",
            )
        )
    headings = (
        *("", "seconds", *PHASES, "over the first, judging excluded", "step ms", "of floor"),
        *("predicted step ms", "off by"),
    )
    memory = [
        (
            name,
            f"{summary['decode_kv_bytes']['median'] / 1e6:.2f}",
            f"{summary['ideal_kv_bytes']['median'] / 1e6:.2f}",
            f"{document['predictions'][name]['kv_bytes'] / 1e6:.2f}"
            if document["predictions"]
            else "",
            f"{summary['peak_blocks']['median']:.0f}",
            f"{summary['peak_blocks_unshared']['median']:.0f}",
        )
        for name, summary in document["summary"].items()
    ]
    memory_headings = (
        *("", "KV MB decoding", "one trunk + N tails + image", "predicted"),
        *("peak blocks with judging", "without sharing"),
    )
    parts = [
        f"# {document['title']}",
        intro,
        markdown_table(headings, rows),
        markdown_table(memory_headings, memory),
        source_line(document),
    ]
    return "\n\n".join(parts) + "\n"


def plan_to_markdown(document: dict[str, Any]) -> str:
    """Predictions, a table a machine; memory that does not fit is said."""
    parts = [
        f"# {document['title']}",
        "From bytes and products alone; nothing was run on a GPU.",
    ]
    for plan in document["plans"]:
        parts += [f"{plan['machine']}:", _plan_table(plan)]
    return "\n\n".join(parts) + "\n"


def _plan_table(plan: dict[str, Any]) -> str:
    rows = []
    for p in plan["predictions"]:
        needed = p["kv_bytes"] + p["weight_bytes"]
        limit = plan["memory_bytes"]
        rows.append(
            (
                p["beam_size"],
                f"{p['total']:.3f}",
                *(f"{p[phase]:.3f}" for phase in ("image_encode", "prefill", "decode", "judge")),
                f"{1000 * p['step_seconds']:.2f}",
                f"{1 / p['step_seconds']:.0f}",
                f"{p['beam_size'] / p['step_seconds']:.0f}",
                p["num_judge_tokens"],
                f"{p['kv_bytes'] / 1e9:.3f}",
                f"{needed / 1e9:.2f}" + (" (does not fit)" if limit and needed > limit else ""),
            )
        )
    headings = (
        *("N", "seconds", "image_encode", "prefill", "decode", "judge", "step ms"),
        *("tok/s per branch", "tok/s", "judge tokens", "KV GB", "weights + KV GB"),
    )
    return markdown_table(headings, rows)
