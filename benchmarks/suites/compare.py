"""This run of the suites against the recorded one: `python benchmarks/suites/compare.py NEW.json`.

Reports the ratio of medians and says what got slower; it fails nothing, since machines differ and are
noisy. Ratios are also taken over their own median, which a slower machine as a whole leaves alone.
`--record` makes the new run the recorded one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).resolve().parents[1] / "results" / "suites.json"
SLOWER = 2.0  # times the recorded median, the machine's own pace taken out


def read_medians(path: Path) -> dict[str, float]:
    """Seconds by test, from pytest-benchmark's file or a recorded one."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if "medians" in document:
        return document["medians"]
    return {b["fullname"].split("/")[-1]: b["stats"]["median"] for b in document["benchmarks"]}


def compare(new: dict[str, float], old: dict[str, float]) -> tuple[list[str], list[str]]:
    """The table's lines, and the tests that got slower."""
    ratios = {name: new[name] / old[name] for name in new if name in old}
    pace = statistics.median(ratios.values()) if ratios else 1.0
    lines, slower = [f"{'test':58} {'now us':>12} {'then us':>12} {'ratio':>7}"], []
    for name, seconds in new.items():
        then = f"{1e6 * old[name]:12.1f}" if name in old else f"{'new':>12}"
        ratio = f"{ratios[name]:7.2f}" if name in ratios else ""
        is_slower = ratios.get(name, 0.0) > SLOWER * max(pace, 1.0)
        lines.append(f"{name:58} {1e6 * seconds:12.1f} {then} {ratio}{' <- slower' * is_slower}")
        slower += [name] * is_slower
    lines += [f"{name:58} {'gone':>12}" for name in old if name not in new]
    lines.append(f"median ratio {pace:.2f}: how fast this machine is now beside the recorded run")
    return lines, slower


def main() -> int:
    parser = argparse.ArgumentParser(
        description="compare the suites' medians with the recorded run"
    )
    parser.add_argument("new", type=Path)
    parser.add_argument("--record", action="store_true", help="make this run the recorded one")
    options = parser.parse_args()
    new = read_medians(options.new)
    if options.record:
        machine = json.loads(options.new.read_text("utf-8")).get("machine_info", {})
        cpu = machine.get("cpu", {}).get("brand_raw", "unknown")
        RECORDED.write_text(json.dumps({"cpu": cpu, "medians": new}, indent=1) + "\n", "utf-8")
        print(f"recorded {len(new)} medians in {RECORDED}")
        return 0
    if not RECORDED.exists():
        print(f"nothing is recorded to compare with; `make bench-record` does so ({RECORDED})")
        return 0
    lines, slower = compare(new, read_medians(RECORDED))
    print("\n".join(lines))
    print("slower: " + ", ".join(slower) if slower else "nothing got slower")
    return 0


if __name__ == "__main__":
    sys.exit(main())
