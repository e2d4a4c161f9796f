"""What the engine's speed is held to, checked on the report's documents.

A bar that the documents do not measure has no verdict; one that is missed says by how much and what
bounds it. The numbers come from the documents alone. The published search judges each match in one
order, so that is compared with it; the engine's default, both orders, with the strong baseline's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stagebeam.benchmarks.accuracy.bars import Bar
from stagebeam.benchmarks.speed.contenders import ONE_ORDER, PUBLISHED
from stagebeam.benchmarks.speed.speed_bounds import (
    in_flight_bound,
    latency_bound,
    missed_by,
    search_bound,
    worst_points,
)

Documents = Mapping[str, dict[str, Any]]
FORMATS = ("float32", "bfloat16", "int8", "int4")
# (case, rival, format or None for the best) -> least times faster
SPEEDS = (
    ("bundled", "hf-published", None, 50.0),
    ("bundled", "hf-strong", None, 8.0),
    ("midsize", "hf-published-sampled", "float32", 4.0),
    ("midsize", "hf-strong", "float32", 1.5),
    ("midsize", "hf-published-sampled", "bfloat16", 6.0),
    ("midsize", "hf-strong", "bfloat16", 2.0),
    ("midsize", "hf-published-sampled", None, 8.0),
    ("midsize", "hf-strong", None, 3.0),
)
OVER_FIRST = {"N=2": 1.15, "N=4": 1.35, "N=8": 2.0}
KV_MEMORY, IN_FLIGHT, PLANNER, OVERHEAD = 0.05, 4.0, 0.25, 0.02


def check_bars(documents: Documents) -> list[Bar]:
    """All bars, over the documents by their case's name."""
    return [
        *(_speed(documents, *speed) for speed in SPEEDS),
        *_memory(documents),
        *_latency(documents),
        *_in_flight(documents),
        *_planner(documents),
        *_overhead(documents),
    ]


def _speed(documents: Documents, case: str, rival: str, dtype: str | None, least: float) -> Bar:
    orders = ONE_ORDER if rival.startswith(PUBLISHED) else ""
    judged = "one order" if orders else "both orders"
    name = f"{case}, N=4, {judged}, {dtype or 'best format'}: times faster than {rival}"
    wanted = f">= {least:g}"
    document = documents.get(case)
    if document is None:
        return Bar(name, wanted)
    ratios = {r["this"]: r["total"] for r in document["ratios"] if r["that"] == rival}
    candidates = [f"ours-{name}" for name in ([dtype] if dtype else FORMATS)]
    found = [this for this in candidates if this + orders in ratios]
    if not found:
        return Bar(name, wanted)
    best = max(found, key=lambda this: ratios[this + orders]["median"])
    ratio = ratios[best + orders]
    text = f"{ratio['median']:.2f}{interval(ratio)}" + ("" if dtype else f", {best}")
    if orders and best in ratios:
        text += f"; both orders {ratios[best]['median']:.2f}"
    holds = ratio["median"] >= least
    if not holds:
        text += f"; {missed_by(ratio['median'], least)}: "
        text += search_bound(document, best + orders, rival)
    return Bar(name, wanted, text, holds)


def _memory(documents: Documents) -> Iterator[Bar]:
    name = "bundled, N=4: KV memory over one trunk + N tails + image"
    wanted = f"within {KV_MEMORY:.0%}"
    document = documents.get("bundled")
    summary = {} if document is None else document["summary"].get("ours-float32", {})
    if "ideal_kv_bytes" not in summary:
        yield Bar(name, wanted)
        return
    used, ideal = (summary[key]["median"] for key in ("decode_kv_bytes", "ideal_kv_bytes"))
    assert document is not None
    strong = document["summary"].get("hf-strong", {}).get("decode_kv_bytes")
    text = f"{used / ideal - 1:+.1%}"
    if strong:
        text += f"; hf-strong holds {strong['median'] / used:.1f} times as much"
    yield Bar(name, wanted, text, abs(used / ideal - 1) <= KV_MEMORY)


def _latency(documents: Documents) -> Iterator[Bar]:
    document = documents.get("beam-sizes")
    for size, most in OVER_FIRST.items():
        name = f"mid-size, bfloat16: latency of {size} over N=1, judging excluded"
        wanted = f"<= {most:g}"
        ratio = None if document is None else document["over_first"].get(size)
        if document is None or ratio is None:
            yield Bar(name, wanted)
            continue
        text, holds = f"{ratio['median']:.2f}{interval(ratio)}", ratio["median"] <= most
        if not holds:
            text += f"; {missed_by(ratio['median'], most)}: {latency_bound(document, size, 'N=1')}"
        yield Bar(name, wanted, text, holds)


def _in_flight(documents: Documents) -> Iterator[Bar]:
    name = "mid-size, bfloat16, greedy: 16 questions at once, times the throughput of one by one"
    wanted = f">= {IN_FLIGHT:g}"
    document = documents.get("in-flight")
    if document is None or not document["ratios"]:
        yield Bar(name, wanted)
        return
    pair = document["ratios"][0]
    ratio = pair["total"]
    text, holds = f"{ratio['median']:.2f}{interval(ratio)}", ratio["median"] >= IN_FLIGHT
    if not holds:
        text += f"; {missed_by(ratio['median'], IN_FLIGHT)}: "
        text += in_flight_bound(document, pair["this"])
    yield Bar(name, wanted, text, holds)


def _planner(documents: Documents) -> Iterator[Bar]:
    name = "planner against the measured decode step, whole sweep"
    wanted = f"within {PLANNER:.0%}"
    document = documents.get("scaling")
    points = (
        [] if document is None else [p for s in document["sweeps"].values() for p in s["points"]]
    )
    errors = [p["predicted"] / p["seconds"] - 1 for p in points if "predicted" in p]
    if document is None or not errors:
        yield Bar(name, wanted)
        return
    held = sum(abs(error) <= PLANNER for error in errors)
    text = f"{min(errors):+.0%} to {max(errors):+.0%}, {held} of {len(errors)} points"
    if held < len(errors):
        text += f"; furthest off: {worst_points(document)}"
    yield Bar(name, wanted, text, held == len(errors))


def _overhead(documents: Documents) -> Iterator[Bar]:
    document = documents.get("overhead")
    ratios = {} if document is None else document["ratios"]
    for name in ("AsyncEngine, every event", "C code, every event"):
        ratio = ratios.get(name)
        bar = f"mid-size: {name}, over the bare loop a token"
        wanted = f"< {OVERHEAD:.0%}"
        if ratio is None:
            yield Bar(bar, wanted)
        else:
            over = ratio["median"] - 1
            yield Bar(bar, wanted, f"{over:+.1%}", over < OVERHEAD)


def interval(ratio: dict[str, Any]) -> str:
    """The bootstrap interval in brackets; nothing where there were too few rounds."""
    ends = ratio["interval"]
    return f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends else ""
