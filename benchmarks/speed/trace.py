"""A run as a trace that Perfetto and chrome://tracing open: a lane for each branch, one for judging.

Chrome's trace event format: complete events ("X") in microseconds, lanes named by metadata events.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagebeam.benchmarks.speed.recorder import Span

_ENGINE, _JUDGE, _FIRST_BRANCH = 0, 1, 2


def write_trace(spans: Sequence[Span], path: Path) -> None:
    """Write the spans as one JSON file; time starts at the first of them."""
    path.write_text(json.dumps(trace_events(spans)) + "\n", "utf-8")


def trace_events(spans: Sequence[Span]) -> dict[str, Any]:
    """The document: processes are questions, process 0 is the engine with all its passes."""
    start = min((span.start for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    lanes: dict[tuple[int, int], str] = {(0, _ENGINE): "passes"}
    for span in spans:
        times = {"ts": 1e6 * (span.start - start), "dur": 1e6 * span.seconds, "ph": "X"}
        events.append(
            {
                **times,
                "name": span.kind,
                "cat": "pass",
                "pid": 0,
                "tid": _ENGINE,
                "args": {
                    "tokens": span.num_tokens,
                    "KV blocks": span.used_blocks,
                    "host_us": 1e6 * (span.seconds - span.forward_seconds),
                },
            }
        )
        for lane in span.lanes:
            pid = lane.question + 1
            if lane.is_judging:
                tid, name = _JUDGE, "judging"
            elif span.kind == "prefill":
                tid, name = _ENGINE, "prompt"
            else:
                tid, name = _FIRST_BRANCH + lane.index, f"branch {lane.index}"
            lanes[pid, tid] = name
            label = span.kind if lane.is_judging or not lane.name else lane.name
            events.append({**times, "name": label, "cat": span.kind, "pid": pid, "tid": tid})
    names = {0: "engine"} | {pid: f"question {pid - 1}" for pid, _ in lanes if pid}
    for pid, name in names.items():
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
    for (pid, tid), name in lanes.items():
        entry = {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        events.append(entry)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
