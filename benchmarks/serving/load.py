"""Many clients on one server, some of which go away: `python -m stagebeam.benchmarks.serving.load`.

Clients ask in a loop, by several searches, streamed and whole; a share of the streams is dropped
midway. A thread of its own asks /health all the while. Knows the server by its URL only; invariant:
every request is counted once, as answered, refused (429), dropped or an error.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import json
import random
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from stagebeam.benchmarks import provenance

SEARCHES: tuple[dict[str, Any], ...] = (
    {"strategy": "greedy"},
    {"strategy": "stage_beam", "beam_size": 1},
    {"strategy": "stage_beam", "beam_size": 2},
    {"strategy": "stage_beam", "beam_size": 4},
    {"strategy": "best_of_n", "beam_size": 2},
)
HEALTH_INTERVAL_SECONDS = 0.02
RETRY_SECONDS = 0.25
HELD = (
    *("num_requests_running", "num_requests_waiting"),
    *("kv_cache_usage_perc", "num_images_in_use"),
)


@dataclass(slots=True)
class LoadReport:
    """What came of a load; seconds are the clients', `health` those of each /health."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    first_byte: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            **{name: self.outcomes[name] for name in ("answered", "refused", "dropped", "error")},
            "answer_seconds": quantiles(self.answered),
            "first_chunk_seconds": quantiles(self.first_byte),
            "health_seconds": quantiles(self.health),
            "num_health": len(self.health),
            "errors": self.errors[:5],
        }


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the maximum; empty where there are no values."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
        for name, share in at.items()
    }


def run_load(
    url: str,
    *,
    seconds: float,
    num_clients: int,
    messages: list[Any],
    model: str,
    drop_share: float = 0.1,
    seed: int = 0,
) -> LoadReport:
    """Load the server at `url` (http://host:port) for a time and wait for the last answers."""
    report = LoadReport()
    stop = threading.Event()
    prober = threading.Thread(target=_probe, args=(url, report, stop))
    prober.start()
    try:
        asyncio.run(_clients(url, report, seconds, num_clients, messages, model, drop_share, seed))
    finally:
        stop.set()
        prober.join()
    return report


async def _clients(
    url: str,
    report: LoadReport,
    seconds: float,
    num_clients: int,
    messages: list[Any],
    model: str,
    drop_share: float,
    seed: int,
) -> None:
    ends_at = time.monotonic() + seconds
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
    ) as client:

        async def loop(number: int) -> None:
            rng = random.Random(f"{seed}/{number}")
            while time.monotonic() < ends_at:
                await _ask(client, report, rng, messages, model, rng.random() < drop_share)

        await asyncio.gather(*(loop(number) for number in range(num_clients)))


async def _ask(
    client: openai.AsyncOpenAI,
    report: LoadReport,
    rng: random.Random,
    messages: list[Any],
    model: str,
    is_dropped: bool,
) -> None:
    options: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "seed": rng.randrange(1 << 32),
        "extra_body": rng.choice(SEARCHES),
    }
    num_chunks = rng.randrange(1, 12)
    began = time.perf_counter()
    try:
        if is_dropped or rng.random() < 0.5:
            async with await client.chat.completions.create(stream=True, **options) as stream:
                num_heard, last = 0, None
                async for chunk in stream:
                    if num_heard == 0:
                        report.first_byte.append(time.perf_counter() - began)
                    num_heard += 1
                    last = chunk
                    if is_dropped and num_heard >= num_chunks:
                        report.outcomes["dropped"] += 1
                        return
            assert last is not None
            assert last.choices[0].finish_reason is not None
        else:
            reply = await client.chat.completions.create(**options)
            assert reply.choices[0].finish_reason is not None
        report.outcomes["answered"] += 1
        report.answered.append(time.perf_counter() - began)
    except openai.RateLimitError:
        report.outcomes["refused"] += 1
        await asyncio.sleep(RETRY_SECONDS)
    except Exception as error:  # every fault is a finding
        report.outcomes["error"] += 1
        report.errors.append(f"{type(error).__name__}: {error}")


def _probe(url: str, report: LoadReport, stop: threading.Event) -> None:
    address = urlsplit(url)
    while not stop.wait(HEALTH_INTERVAL_SECONDS):
        began = time.perf_counter()
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().read() != b'{"status":"ok"}':
                report.errors.append("/health did not say ok")
        except OSError as error:
            report.errors.append(f"/health: {error}")
        finally:
            connection.close()
        report.health.append(time.perf_counter() - began)


def held_after(url: str, seconds: float = 10.0) -> dict[str, float]:
    """The server's own gauges once it is idle: all are 0 where nothing is held."""
    ends_at = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        told = {
            name: [
                float(s.rsplit(None, 1)[1]) for s in lines if s.startswith(f"stagebeam:{name}{{")
            ]
            for name in HELD
        }
        assert all(told.values()), f"/metrics does not tell all of {HELD}"
        held = {name: sum(values) for name, values in told.items()}
        if not any(held.values()) or time.monotonic() >= ends_at:
            return held
        time.sleep(0.1)


def main() -> int:
    """Load a server that runs already; prints one JSON document."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--question", required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--drop-share", type=float, default=0.1)
    parser.add_argument("--output", type=Path, metavar="DIR", help="write load.json there, too")
    options = parser.parse_args()
    image = base64.b64encode(options.image.read_bytes()).decode()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                {"type": "text", "text": options.question},
            ],
        }
    ]
    with openai.OpenAI(base_url=f"{options.url}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
    report = run_load(
        options.url,
        seconds=options.seconds,
        num_clients=options.clients,
        messages=messages,
        model=model,
        drop_share=options.drop_share,
    )
    held = held_after(options.url)
    document = {
        "benchmark": "load",
        "clients": options.clients,
        "seconds": options.seconds,
        "drop_share": options.drop_share,
        **report.summary(),
        "held_after": held,
        "model": model,
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "command": provenance.command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    text = json.dumps(document, indent=1)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "load.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if report.errors or any(held.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
