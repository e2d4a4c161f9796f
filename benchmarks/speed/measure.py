"""The measurement itself: contenders take turns in one process, round after round, on the same tasks.

Alternating makes interference fall on all alike, and every ratio is taken within a round. The order
turns by one each round. A contender that has used up its time sits the later rounds out. Every run is
saved as it ends, and what is recorded already is not run again: a measurement goes on where it stopped.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagebeam.benchmarks.baselines.outcome import Outcome
from stagebeam.benchmarks.baselines.task import Lengths, Task
from stagebeam.benchmarks.speed.contenders import Contender
from stagebeam.benchmarks.speed.floor import WEIGHT_BYTES, ideal_kv_bytes, search_bytes
from stagebeam.benchmarks.speed.machine_speed import MachineSpeed
from stagebeam.benchmarks.speed.memory import peak_bytes, reset_peak
from stagebeam.benchmarks.speed.ours import Recorded
from stagebeam.benchmarks.speed.statistics import paired_ratio, spread
from stagebeam.engine.models.spec import ModelSpec

PHASES = ("image_encode", "prefill", "decode", "judge", "host")
WARM_UP = Lengths(prompt=20, stages=(4, 4, 4, 4), judge_head=20, judge_tail=8, verdict=4)

# (contender, seed, lengths or None for the run's own) -> the round's tasks
MakeTasks = Callable[[Contender, int, Lengths | None], list[Task]]


# Records by contender, one a round it ran in.
Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often: at least one round each, then until `rounds` or a contender's `seconds` are up.

    budget: seconds from the start after which no run begins that would not end by then, going by its
            last; None runs to the end
    """

    rounds: int = 5
    seconds: float = 60.0
    budget: float | None = None


def measure(
    names: Sequence[str],
    make: Callable[[str], Contender],
    make_tasks: MakeTasks,
    rounds: Rounds,
    spec: ModelSpec,
    speed: MachineSpeed,
    records: Records,
    save: Callable[[], None],
) -> bool:
    """Run what `records` lacks, adding to it; False where the budget ended before the rounds.

    make: called when a contender first runs, since loading takes a while
    save: called after every run
    """
    began = time.perf_counter()
    contenders: dict[str, Contender] = {}
    for name, number in _runs(names, rounds, records):
        last = records[name][-1]["seconds_spent"] if records[name] else 0.0
        elapsed = time.perf_counter() - began
        if rounds.budget is not None and elapsed + 1.1 * last > rounds.budget:
            return False
        if name not in contenders:
            say(f"{name}: loading and warming up")
            contenders[name] = make(name)
            contenders[name].answer(make_tasks(contenders[name], 0, WARM_UP)[:1])
        tasks = make_tasks(contenders[name], number + 1, None)
        records[name].append({"round": number, **_one(contenders[name], tasks, spec, speed)})
        save()
        say(f"round {number + 1}: {name} {records[name][-1]['seconds']:.2f} s")
    return True


def _runs(names: Sequence[str], rounds: Rounds, records: Records) -> Iterator[tuple[str, int]]:
    """The (contender, round) pairs that are still to run, in turns."""
    for number in range(rounds.rounds):
        turn = number % max(len(names), 1)
        for name in [*names[turn:], *names[:turn]]:
            is_done = any(record["round"] == number for record in records[name])
            spent = sum(r["seconds_spent"] for r in records[name] if r["round"] < number)
            if not is_done and not (number and spent >= rounds.seconds):
                yield name, number


def say(line: str) -> None:
    """Progress, to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def _one(
    contender: Contender, tasks: list[Task], spec: ModelSpec, speed: MachineSpeed
) -> dict[str, Any]:
    has_peak = reset_peak()
    began = time.perf_counter()
    recorded = contender.answer(tasks)
    spent = time.perf_counter() - began
    outcomes = recorded.outcomes
    seconds = spent + sum(outcome.repeated_seconds for outcome in outcomes)
    phases = {
        name: sum(getattr(o.timings, name) for o in outcomes) for name in PHASES if name != "host"
    }
    phases["host"] = max(0.0, seconds - sum(phases.values()))
    if recorded.spans:  # questions in one batch share their steps
        spans = [span for span in recorded.spans if span.kind == "decode"]
        steps = [s.seconds / s.num_steps for s in spans for _ in range(s.num_steps)]
    else:
        steps = [step for outcome in outcomes for step in outcome.step_seconds]
    return {
        "seconds": seconds,
        "seconds_spent": spent,
        "phases": phases,
        "host_in_passes": recorded.host_seconds if recorded.spans else None,
        **_rates(outcomes, phases["decode"], len(steps), seconds),
        "itl": [float(v) for v in np.percentile(steps, [20, 50, 80, 99])] if steps else None,
        "peak_rss_bytes": peak_bytes() if has_peak else None,
        "peak_kv_bytes": max(o.peak_kv_bytes for o in outcomes),
        **_memory(contender, tasks, recorded, spec),
        **_floor(contender, tasks, outcomes, spec, speed, phases["decode"]),
        **_counts(outcomes),
    }


def _rates(
    outcomes: Sequence[Outcome], decode: float, steps: int, seconds: float
) -> dict[str, Any]:
    tokens = sum(o.usage.completion_tokens for o in outcomes)
    first = [t for o in outcomes if (t := o.timings.time_to_first_token) is not None]
    return {
        "ttft": statistics.median(first) if first else None,
        "tpot": decode / steps if steps else None,
        "tokens_per_second": tokens / decode if decode else None,
        "tokens_per_second_per_branch": steps / decode if decode else None,
        "tokens_per_second_end_to_end": tokens / seconds,
    }


def _memory(
    contender: Contender, tasks: Sequence[Task], recorded: Recorded, spec: ModelSpec
) -> dict[str, Any]:
    """KV memory while decoding, and what one trunk, N tails and one image come to."""
    if len(tasks) > 1:
        return {"decode_kv_bytes": None, "ideal_kv_bytes": None}
    if contender.ours is None:
        return {
            "decode_kv_bytes": recorded.outcomes[0].decode_kv_bytes or None,
            "ideal_kv_bytes": None,
        }
    task, plan = tasks[0], contender.ours.engine.memory
    has_image = task.image is not None
    ideal = ideal_kv_bytes(
        spec,
        recorded.outcomes[0].result.stages,
        kv_bytes=contender.kv_bytes,
        prompt_tokens=len(task.prompt_ids),
        block_size=plan.block_size,
        has_image=has_image,
    )
    used = recorded.decode_blocks * plan.block_bytes
    image = spec.image_slot_bytes(contender.kv_bytes) if has_image else 0
    return {"decode_kv_bytes": used + image, "ideal_kv_bytes": ideal}


def _floor(
    contender: Contender,
    tasks: Sequence[Task],
    outcomes: Sequence[Outcome],
    spec: ModelSpec,
    speed: MachineSpeed,
    decode: float,
) -> dict[str, Any]:
    """Decoding's floor were the questions alone; a batch of questions shares the weights' read."""
    total = sum(
        search_bytes(
            spec,
            outcome.result.stages,
            weight_bytes=WEIGHT_BYTES[contender.dtype],
            kv_bytes=contender.kv_bytes,
            prompt_tokens=len(task.prompt_ids),
            vision_tokens=task.image.num_tiles * spec.tokens_per_tile if task.image else 0,
        )
        for task, outcome in zip(tasks, outcomes)
    )
    seconds = total / speed.bytes_per_second
    share = seconds / decode if decode and len(tasks) == 1 else None
    return {"floor_seconds": seconds, "share_of_floor": share}


def _counts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    names = (
        *("completion_tokens", "decode_steps", "judge_prompt_tokens", "judge_completion_tokens"),
        *("judge_calls", "image_encodes", "prefill_passes", "peak_blocks", "peak_blocks_unshared"),
    )
    return {
        **{name: sum(getattr(o.usage, name) for o in outcomes) for name in names},
        "well_formed": sum(o.is_well_formed for o in outcomes),
    }


def summarize(records: Records) -> dict[str, Any]:
    """Per contender the spread of every number, and every pair's ratio over shared rounds."""
    summary = {}
    for name, rows in records.items():
        if rows:
            numbers = [
                k for k, v in rows[0].items() if isinstance(v, (int, float)) and k != "round"
            ]
            summary[name] = {
                **{
                    key: spread([row[key] for row in rows])
                    for key in numbers
                    if all(row[key] is not None for row in rows)
                },
                "phases": {p: spread([row["phases"][p] for row in rows]) for p in PHASES},
                "rounds": len(rows),
            }
    return summary


def ratios(records: Records) -> list[dict[str, Any]]:
    """How many times faster each contender is than each that stands before it."""
    names = [name for name, rows in records.items() if rows]
    found = []
    for i, that in enumerate(names):
        for this in names[i + 1 :]:
            entry: dict[str, Any] = {"this": this, "that": that}
            for key, of in (("total", _seconds), ("decode", _decode), ("judge", _judge)):
                those = {row["round"]: of(row) for row in records[that]}
                pairs = [
                    (those[row["round"]], of(row))
                    for row in records[this]
                    if row["round"] in those and of(row) > 0 and those[row["round"]] > 0
                ]
                if pairs:
                    entry[key] = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
            found.append(entry)
    return found


def _seconds(row: dict[str, Any]) -> float:
    return row["seconds"]


def _decode(row: dict[str, Any]) -> float:
    return row["phases"]["decode"]


def _judge(row: dict[str, Any]) -> float:
    return row["phases"]["judge"]
