"""What bounds a speed that misses its bar, in words, from the report's documents alone.

Reading is bound by the bandwidth and products by the float32 library's speed that the document
measured on its machine; a format of ours may be faster than that library.
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def missed_by(ratio: float, wanted: float) -> str:
    """How far a speed is from the one that was wanted."""
    return f"missed by {abs(1 - ratio / wanted):.0%}"


def search_bound(document: Document, this: str, that: str) -> str:
    """Where a search's time goes, and how much faster than `that` it would be at its bounds."""
    summary = document["summary"][this]
    total, phases = summary["seconds"]["median"], summary["phases"]
    judge, decode = phases["judge"]["median"], phases["decode"]["median"]
    tokens = summary["judge_prompt_tokens"]["median"]
    least = prompt_seconds(document, tokens)
    floor = summary["floor_seconds"]["median"]
    text = (
        f"{judge / total:.0%} of its {total:.2f} s is judging ({tokens:.0f} prompt tokens of "
        f"{1e6 * judge / max(tokens, 1):.0f} us, whose products take {1e6 * least / max(tokens, 1):.0f} us at "
        f"the float32 library's speed), {decode / total:.0%} decoding (the reads alone "
        f"{floor / total:.0%})"
    )
    bound = total - judge - decode + min(judge, least) + min(decode, floor)
    rival = document["summary"][that]["seconds"]["median"]
    return f"{text}; with both at these bounds it would be {rival / bound:.1f} times"


def prompt_seconds(document: Document, num_tokens: float) -> float:
    """The products of a prompt's tokens at the speed of the float32 library."""
    products = 2.0 * document["sizes"]["prefill_parameters"] * num_tokens
    return products / document["machine_speed"]["flops"]


def latency_bound(document: Document, size: str, first: str) -> str:
    """A step of a beam size beside the first's, each with the time that its reads alone take."""
    steps = []
    for name in (size, first):
        summary = document["summary"][name]
        step = 1000 * summary["tpot"]["median"]
        reads = step * summary["share_of_floor"]["median"]
        steps.append(f"{step:.2f} ms at {name} (reads {reads:.2f})")
    return f"a step takes {' and '.join(steps)}"


def in_flight_bound(document: Document, this: str) -> str:
    """A step of all questions together beside its reads and its products."""
    step = document["summary"][this]["tpot"]["median"]
    rows = document["setting"]["questions"]
    products = (
        2.0 * document["sizes"]["decode_parameters"] * rows / document["machine_speed"]["flops"]
    )
    return (
        f"a step of {rows} rows takes {1000 * step:.2f} ms, its products "
        f"{1000 * products:.2f} ms at the float32 library's speed"
    )


def worst_points(document: Document, count: int = 3) -> str:
    """The steps that the planner gets most wrong."""
    errors = [
        (point["predicted"] / point["seconds"] - 1, f"{name} {point['size']}")
        for name, sweep in document["sweeps"].items()
        for point in sweep["points"]
        if "predicted" in point
    ]
    worst = sorted(errors, key=lambda found: -abs(found[0]))[:count]
    return ", ".join(f"{name} {error:+.0%}" for error, name in worst)
