"""What an answer took, as figures of the report: seconds by phase, blocks shared, counts.

Knows only `Answer.to_dict()`'s usage and timings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PHASES = ("queue", "image_encode", "prefill", "decode", "judge")
_PHASE_COLORS = {"image_encode": "image"}


def timings_figure(timings: Mapping[str, Any]) -> str:
    """Where the time went."""
    total = timings["total"]
    spans = [(name.replace("_", " "), name, timings[name]) for name in _PHASES]
    spans.append(("other", "other", max(total - sum(span[2] for span in spans), 0.0)))
    bars, legend = "", ""
    for name, key, seconds in spans:
        color = f"background:var(--{_PHASE_COLORS.get(key, key)})"
        if seconds > 0:
            bars += f'<i style="flex:{1000 * seconds / max(total, 1e-9):.3f} 0 0;{color}" title="{name}"></i>'
        legend += f'<div><i style="{color}"></i>{name}<span>{seconds_text(seconds)}</span></div>'
    first = timings["time_to_first_token"]
    remark = "" if first is None else f"The first token came after {seconds_text(first)}."
    return (
        f'<div class="card figure num"><h3>Time <span>{seconds_text(total)}</span></h3>'
        f'<div class="phases">{bars}</div><div class="legend">{legend}</div>'
        f'<p class="remark">{remark}</p></div>'
    )


def blocks_figure(usage: Mapping[str, Any]) -> str:
    """Blocks held, beside what they would be without sharing."""
    shared, unshared = usage["peak_blocks"], usage["peak_blocks_unshared"]
    widest = max(shared, unshared, 1)
    rows = "".join(
        f'<span>{name}</span><span class="track {style}">'
        f'<i style="width:{100 * count / widest:.1f}%"></i></span><b>{count:,}</b>'
        for name, style, count in (
            ("held", "with", shared),
            ("without sharing", "without", unshared),
        )
    )
    times = f"{unshared / shared:.1f} times fewer" if shared else ""
    return (
        f'<div class="card figure num"><h3>KV blocks at the peak <span>{times}</span></h3>'
        f'<div class="blocks">{rows}</div><p class="remark">Branches and judge prompts share the '
        "blocks of what they have in common.</p></div>"
    )


def cost_note(usage: Mapping[str, Any]) -> str:
    """One sentence on what was written."""
    encodes = usage["image_encodes"]
    image = f" The image was encoded {_times(encodes)}." if encodes else ""
    return (
        f"{counted(usage['completion_tokens'], 'token')} written in "
        f"{counted(usage['decode_steps'], 'decode step')}, all live branches in one batch.{image}"
    )


def count_tiles(usage: Mapping[str, Any], timings: Mapping[str, Any]) -> str:
    """The counts of `Usage`, one tile each."""
    decode = timings["decode"]
    shown = [
        ("prompt tokens", f"{usage['prompt_tokens']:,}"),
        ("tokens written", f"{usage['completion_tokens']:,}"),
        (
            "tokens a second, decoding",
            f"{usage['completion_tokens'] / decode:,.0f}" if decode else "-",
        ),
        ("prefill passes", f"{usage['prefill_passes']:,}"),
        ("judge rounds", f"{usage['judge_rounds']:,}"),
        ("judge prompts", f"{usage['judge_calls']:,}"),
        ("judge tokens read", f"{usage['judge_prompt_tokens']:,}"),
        ("judge tokens written", f"{usage['judge_completion_tokens']:,}"),
        ("ties", f"{usage['ties']:,}"),
        ("order disagreements", f"{usage['disagreements']:,}"),
        ("malformed verdicts", f"{usage['malformed_verdicts']:,}"),
        ("malformed candidates", f"{usage['malformed_candidates']:,}"),
        ("identical pairs, not judged", f"{usage['identical_matches']:,}"),
    ]
    return "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in shown)


def seconds_text(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1}f} ms"


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun in the right form."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
