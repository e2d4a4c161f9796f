"""The native CPU backend's race on SmolLM2-135M: against the memory's floor, HF and other engines.

`python -m stagebeam.benchmarks.speed.native_race --part decode --output FOLDER` measures one part and
merges it into FOLDER/result.json, so that a quiet machine is needed for a minute at a time; `--part
table` prints all. Contenders alternate and ratios are taken within a round. Times are step times of
greedy decoding after a prompt of random tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from stagebeam.benchmarks import provenance
from stagebeam.benchmarks.baselines.hf_model import HFModel
from stagebeam.benchmarks.baselines.peers import Peer, PeerRun, peers
from stagebeam.benchmarks.midsize import smollm2_folder
from stagebeam.benchmarks.speed import bundled_race
from stagebeam.benchmarks.speed.instructions import instructions
from stagebeam.benchmarks.speed.native_run import NativeRun
from stagebeam.benchmarks.speed.native_table import table
from stagebeam.benchmarks.speed.statistics import paired_ratio, spread
from stagebeam.bindings import _cpu
from stagebeam.engine.checkpoints import BUNDLED_CHECKPOINT

FORMATS = ("float32", "bfloat16", "int8", "int4")
_PAUSE = 0.25  # seconds in which other engines' threads stop spinning
_BANDWIDTH_BYTES = 256 << 20


class Race:
    """The settings and what every part needs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.prompt, self.tokens = arguments.prompt, arguments.tokens
        self.rounds, self.threads = arguments.rounds, arguments.threads
        self.formats: list[str] = arguments.formats.split(",")
        self.folder = smollm2_folder()
        self._rng = np.random.default_rng(arguments.seed)
        self.pool = _cpu.ThreadPool(arguments.threads)
        torch.set_num_threads(arguments.threads)

    def prompts(self, count: int, length: int | None = None) -> list[list[int]]:
        """New random prompts, so that no engine has seen them."""
        return self._rng.integers(100, 40_000, (count, length or self.prompt)).tolist()

    def bandwidth(self) -> float:
        """Bytes a second that the threads read together."""
        return _cpu.read_bandwidth(self.pool, _BANDWIDTH_BYTES, 3) * 1e9

    def gemm_rate(self, name: str) -> float:
        """Multiply-adds a second of a format's product, weights in the cache, 128 rows."""
        x = np.random.default_rng(0).standard_normal((128, 576), dtype=np.float32)
        matrix = _cpu.PackedMatrix(1536, 576, name.replace("bfloat16", "bf16"))
        matrix.pack_rows(0, np.ones((1536, 576), np.float32))
        best = 0.0
        for _ in range(10):
            began = time.perf_counter()
            _cpu.linear(self.pool, matrix, x)
            best = max(best, 128 * 1536 * 576 / (time.perf_counter() - began))
        return best

    def native(self) -> dict[str, NativeRun]:
        return {name: NativeRun(self.folder, name, self.threads) for name in self.formats}


def decode(race: Race) -> dict[str, Any]:
    """Steps of 1, 4 and 8 branches of one prompt, in every format, against the floor."""
    runs = race.native()
    records: list[dict[str, Any]] = []
    cases = [(name, branches) for name in runs for branches in (1, 4, 8)]
    for number in range(race.rounds):
        for name, branches in _turned(cases, number):
            run = runs[name]
            run.prefill(race.prompts(1), branches, race.tokens)
            # Bandwidth and cores change from second to second here: they are measured beside.
            before = race.bandwidth()
            steps = [run.step() for _ in range(race.tokens)]
            bandwidth = (before + race.bandwidth()) / 2
            records.append(
                {
                    "round": number,
                    "format": name,
                    "branches": branches,
                    "step_seconds": median(steps),
                    "bandwidth": bandwidth,
                    "gemm_rate": race.gemm_rate(name),
                    "multiply_adds": run.multiply_adds(branches, race.prompt + race.tokens // 2),
                    "weight_bytes": run.decode_bytes,
                    "kv_bytes": run.kv_bytes,
                    "least_kv_bytes": run.least_kv_bytes(race.prompt, branches, 1, race.tokens),
                }
            )
    return {"records": records, "summary": _decode_summary(records)}


def _decode_summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name, branches in dict.fromkeys((r["format"], r["branches"]) for r in records):
        own = [r for r in records if (r["format"], r["branches"]) == (name, branches)]
        alone = [r for r in records if (r["format"], r["branches"]) == (name, 1)]
        floors = [(r["weight_bytes"] + r["kv_bytes"]) / r["bandwidth"] for r in own]
        bounds = [max(f, r["multiply_adds"] / r["gemm_rate"]) for f, r in zip(floors, own)]
        seconds = [r["step_seconds"] for r in own]
        rows.append(
            {
                "format": name,
                "branches": branches,
                "step_seconds": spread(seconds),
                "tokens_per_second": branches / median(seconds),
                "bandwidth": median(r["bandwidth"] for r in own),
                "gemm_rate": median(r["gemm_rate"] for r in own),
                "percent_of_floor": 100 * median(f / s for f, s in zip(floors, seconds)),
                "over_bound": median(s / b for s, b in zip(seconds, bounds)),
                "over_one_branch": paired_ratio(seconds, [r["step_seconds"] for r in alone]),
                "kv_over_least": own[0]["kv_bytes"] / own[0]["least_kv_bytes"],
            }
        )
    return rows


def trunk(race: Race) -> dict[str, Any]:
    """The cache bytes that attention reads with 8 branches on a shared trunk of 1,024 tokens."""
    run = NativeRun(race.folder, race.formats[-1], race.threads)
    run.prefill(race.prompts(1, 1024), 8, 16)
    for _ in range(16):
        run.step()
    least = run.least_kv_bytes(1024, 8, 1, 16)
    return {"kv_bytes": run.kv_bytes, "least_kv_bytes": least, "ratio": run.kv_bytes / least}


def prefill(race: Race) -> dict[str, Any]:
    """One prompt to its first token, ours in every format and HF in float32."""
    model = _hf(race)
    runs = race.native()

    def hf() -> float:
        ids = torch.tensor(race.prompts(1))
        began = time.perf_counter()
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - began

    calls: dict[str, Callable[[], float]] = {"HF float32": hf}
    for name, run in runs.items():
        calls[name] = partial(_native_prefill, run, race)
    times = _alternate(calls, race.rounds)
    return {
        "seconds": {name: spread(values) for name, values in times.items()},
        "hf_over": {name: paired_ratio(times["HF float32"], times[name]) for name in runs},
    }


def engines(race: Race, names: Sequence[str], batches: Sequence[int]) -> dict[str, Any]:
    """Tokens a second of other engines and of ours, distinct prompts, alternating."""
    loaded = {
        name: make() for name, make in peers(race.threads, max(batches)).items() if name in names
    }
    runs = race.native()
    summary: dict[str, Any] = {}
    hf = _hf(race) if "hf" in names else None
    for batch in batches:
        calls = _engine_calls(race, batch, list(loaded.values()), runs, hf)
        for call in calls.values():
            call()  # warm
        summary[str(batch)] = _rates(_alternate(calls, race.rounds))
    return summary


def bundled(race: Race) -> dict[str, Any]:
    """Tokens a second of the bundled checkpoint with an image, 4 rows, beside HF `generate`."""
    batch, prompt = 4, 256
    model = HFModel(BUNDLED_CHECKPOINT)
    ours = {name: bundled_race.open_engine(name, race.threads) for name in bundled_race.FORMATS}
    calls: dict[str, Callable[[], float]] = {
        "HF float32": partial(bundled_race.hf_rate, model, batch, prompt, race.tokens)
    }
    for name, engine in ours.items():
        calls[f"stagebeam {name}"] = partial(
            bundled_race.our_rate, engine, batch, prompt, race.tokens
        )
    try:
        for call in calls.values():
            call()  # warm
        return {str(batch): _rates(_alternate(calls, race.rounds))}
    finally:
        for engine in ours.values():
            engine.close()


def _rates(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Each contender's tokens a second, and ours over each other's."""
    return {
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "ours_over": {
            f"{ours} / {other}": paired_ratio(rates[ours], rates[other])
            for ours in rates
            if ours.startswith("stagebeam")
            for other in rates
            if not other.startswith("stagebeam")
        },
    }


def _engine_calls(
    race: Race, batch: int, loaded: Sequence[Peer], runs: dict[str, NativeRun], hf: Any
) -> dict[str, Callable[[], float]]:
    """What measures each contender's tokens a second."""
    calls: dict[str, Callable[[], float]] = {}
    for peer in loaded:
        calls[peer.name] = partial(_peer_rate, peer, race, batch)
    if hf is not None:
        calls["HF float32"] = lambda: _hf_rate(hf, race.prompts(batch), race.tokens)
    for name, run in runs.items():
        calls[f"stagebeam {name}"] = partial(_native_rate, run, race, batch)
    return calls


def gemm(race: Race) -> dict[str, Any]:
    """Multiply-adds a second of each format's product."""
    rates = {name: max(race.gemm_rate(name) for _ in range(race.rounds)) for name in race.formats}
    return {"multiply_adds_per_second": rates}


def _native_prefill(run: NativeRun, race: Race) -> float:
    return run.prefill(race.prompts(1), 1, 16)


def _peer_rate(peer: Peer, race: Race, batch: int) -> float:
    return peer.generate(race.prompts(batch), race.tokens).tokens_per_second


def _native_rate(run: NativeRun, race: Race, batch: int) -> float:
    run.prefill(race.prompts(batch), 1, race.tokens)
    began = time.perf_counter()
    for _ in range(race.tokens - 1):
        run.step()
    return batch * (race.tokens - 1) / (time.perf_counter() - began)


def _hf(race: Race) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(race.folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()
    return model


def _hf_rate(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
    from transformers import GenerationConfig

    from stagebeam.benchmarks.baselines.hf_model import Stamps

    stamps, ids = Stamps(), torch.tensor(prompts)
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(max_new_tokens=num_tokens, pad_token_id=0),
            stopping_criteria=[stamps],
        )
    run = PeerRun(
        prefill_seconds=0,
        decode_seconds=stamps.times[-1] - stamps.times[0],
        decode_tokens=len(prompts) * (num_tokens - 1),
    )
    return run.tokens_per_second


def _turned(items: Sequence[Any], number: int) -> list[Any]:
    turn = number % len(items)
    return [*items[turn:], *items[:turn]]


def _alternate(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in _turned(list(calls), number):
            gc.collect()
            time.sleep(_PAUSE)
            values[name].append(calls[name]())
    return values


PARTS: dict[str, Callable[[Race], dict[str, Any]]] = {
    "decode": decode,
    "trunk": trunk,
    "gemm": gemm,
    "prefill": prefill,
    "bundled": bundled,
    "instructions": lambda race: instructions(),
    "hf": lambda race: engines(race, ["hf"], [1]),
    "hf-batch": lambda race: engines(race, ["hf"], [4]),
    "llamacpp": lambda race: engines(race, ["llamacpp"], [1, 4]),
    "openvino": lambda race: engines(race, ["openvino"], [1, 4]),
    "ctranslate2-float32": lambda race: engines(race, ["ctranslate2-float32"], [1, 4]),
    "ctranslate2-int8": lambda race: engines(race, ["ctranslate2-int8"], [1, 4]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "table"], required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    path: Path = arguments.output / "result.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    if arguments.part != "table":
        # Each part its own prompts: an engine may keep those of an earlier one.
        arguments.seed += list(PARTS).index(arguments.part)
        race = Race(arguments)
        before = race.bandwidth()
        measured = PARTS[arguments.part](race)
        settings = {k: v for k, v in vars(arguments).items() if k != "output"}
        result["parts"][arguments.part] = {
            "result": measured,
            "settings": settings,
            "isa": _cpu.active_isa(),
            "bandwidth_bytes_per_second": [before, race.bandwidth()],
            "machine": provenance.machine(),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
