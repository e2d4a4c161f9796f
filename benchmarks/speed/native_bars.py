"""What the native CPU backend is held to, checked on the race's document; the numbers are its alone.

A bar that was not measured, or not in every format and batch that it names, has no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagebeam.benchmarks.accuracy.bars import Bar
from stagebeam.benchmarks.speed.native_engines import BATCHES, EQUAL_BITS, name_of
from stagebeam.benchmarks.speed.native_setting import FORMATS
from stagebeam.benchmarks.speed.native_summary import OURS

Parts = Mapping[str, dict[str, Any]]
FLOOR_PERCENT, OVER_BOUND, TRUNK = 80, 1.25, 1.1
OVER_ONE = {4: 1.3, 8: 2.0}
HF_FACTOR, BUNDLED_FACTOR = 2.5, 20


def check_bars(parts: Parts) -> list[Bar]:
    """All bars, over the document's parts by name."""
    peers = [engine for engine in EQUAL_BITS if engine != "hf"]
    return [
        *_decode_bars(parts),
        _trunk_bar(parts),
        _over_hf(parts, name_of("hf", 1), "one row", HF_FACTOR, ("bfloat16", "int8")),
        *(_peer_bar(parts, engine) for engine in peers),
        _bundled_bar(parts),
        _over_hf(parts, "prefill", "prefill of 512 tokens", 1, FORMATS),
        _memory_bar(parts),
    ]


def _decode_bars(parts: Parts) -> list[Bar]:
    rows = parts["decode"]["result"]["rows"] if "decode" in parts else []
    cases = {(row["format"], row["branches"]): row for row in rows}

    def values(key: str, branches: int, formats: Sequence[str]) -> dict[str, float]:
        known = [name for name in formats if (name, branches) in cases]
        return {name: cases[name, branches][key]["median"] for name in known}

    floor = values("percent_of_floor", 1, ("bfloat16", "int8"))
    bars = [_bar("one branch, % of the floor", f">= {FLOOR_PERCENT}", floor, 2, "{:.0f}")]
    for branches, most in OVER_ONE.items():
        over = values("over_one_branch", branches, ("bfloat16",))
        bars.append(_bar(f"{branches} branches over one", f"<= {most:g}", over, 1))
    for branches in OVER_ONE:
        over = values("over_bound", branches, ("int8", "int4"))
        name = f"{branches} branches over the larger of bytes and products"
        bars.append(_bar(name, f"<= {OVER_BOUND:g}", over, 2))
    return bars


def _trunk_bar(parts: Parts) -> Bar:
    measured = parts["trunk"]["result"]["ratio"] if "trunk" in parts else None
    name, wanted = "KV bytes over the least, 8 branches on 1,024 tokens", f"<= {TRUNK:g}"
    return _bar(name, wanted, {} if measured is None else {"": measured}, 1)


def _over_hf(parts: Parts, part: str, name: str, least: float, formats: Sequence[str]) -> Bar:
    over = parts[part]["result"]["ours_over"] if part in parts else {}
    names = {f: f"{OURS}{f} / HF float32" for f in formats}
    values = {f: over[key]["median"] for f, key in names.items() if key in over}
    return _bar(f"{name}, over HF float32", f">= {least:g}", values, len(formats))


def _peer_bar(parts: Parts, engine: str) -> Bar:
    """One engine, every batch, beside our format of as many bits."""
    (own,) = EQUAL_BITS[engine]
    title, values = engine, {}
    for batch in BATCHES:
        if name_of(engine, batch) not in parts:
            continue
        result = parts[name_of(engine, batch)]["result"]
        ((pair, ratio),) = result["ours_over"].items()
        title = pair.split(" / ")[1]
        rate = result["tokens_per_second"][title]["median"]
        values[f"batch {batch} ({rate:.0f} tokens/s)"] = ratio["median"]
    return _bar(f"{own} over {title}", "> 1", values, len(BATCHES))


def _bundled_bar(parts: Parts) -> Bar:
    """The best format's; the others are shown."""
    over = parts["bundled"]["result"]["ours_over"] if "bundled" in parts else {}
    values = {name.split(" / ")[0].removeprefix(OURS): r["median"] for name, r in over.items()}
    name = "bundled checkpoint, 4 rows with an image, over HF float32 (one format)"
    bar = _bar(name, f">= {BUNDLED_FACTOR}", values, 1)
    holds = max(values.values()) >= BUNDLED_FACTOR if values else None
    return Bar(bar.name, bar.wanted, bar.measured, holds)


def _memory_bar(parts: Parts) -> Bar:
    formats = parts["memory"]["result"]["formats"] if "memory" in parts else {}
    values = {name: measured["over_bar"] for name, measured in formats.items()}
    name = "load: peak over (1.15 times the packed model + its largest tensor)"
    return _bar(name, "<= 1", values, len(FORMATS))


def _bar(
    name: str, wanted: str, values: Mapping[str, float], wanted_values: int, form: str = "{:.2f}"
) -> Bar:
    """Every value must hold; no verdict where fewer are there than wanted."""
    if not values:
        return Bar(name, wanted)
    sign, limit = wanted.split(" ")
    keeps = {">=": float.__ge__, "<=": float.__le__, ">": float.__gt__}[sign]
    holds = all(keeps(float(value), float(limit)) for value in values.values())
    shown = ", ".join(f"{key} {form.format(value)}".strip() for key, value in values.items())
    return Bar(name, wanted, shown, holds if len(values) >= wanted_values or not holds else None)
