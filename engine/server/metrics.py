"""Prometheus metrics under vLLM's names, with the prefix `stagebeam:`; one registry a server."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stagebeam.engine.engine import Engine
from stagebeam.engine.outputs import Answer

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counts of one server; thread-safe."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineGauges(engine, model_name))
        self._model_name = model_name
        self._ttft = self._histogram("time_to_first_token_seconds", "From submission.", _SECONDS)
        self._tpot = self._histogram(
            "time_per_output_token_seconds", "A decode step of the question.", _TOKEN_SECONDS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Whole questions.", _SECONDS)
        self._queue = self._histogram("request_queue_time_seconds", "Before admission.", _SECONDS)
        self._success = self._counter("request_success", "Answered.", "finished_reason")
        self._failure = self._counter("request_failure", "Not answered, by status.", "status")
        self._prompt_tokens = self._counter("prompt_tokens", "Prefilled prompt tokens.")
        self._generation_tokens = self._counter(
            "generation_tokens", "Sampled tokens, losing candidates included."
        )
        self._judge_calls = self._counter("judge_calls", "Judge prompts scored or generated.")
        self._blocks = self._counter("kv_peak_blocks", "Sum of the questions' peak KV blocks.")
        self._unshared = self._counter(
            "kv_peak_blocks_unshared", "What that sum would be without sharing."
        )

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer that took `seconds` since its request came."""
        labels, usage, timings = [self._model_name], answer.usage, answer.timings
        if timings.time_to_first_token is not None:
            self._ttft.labels(*labels).observe(timings.time_to_first_token)
        if usage.decode_steps:
            self._tpot.labels(*labels).observe(timings.decode / usage.decode_steps)
        self._e2e.labels(*labels).observe(seconds)
        self._queue.labels(*labels).observe(timings.queue)
        self._success.labels(*labels, answer.finish_reason).inc()
        for counter, count in (
            (self._prompt_tokens, usage.prompt_tokens),
            (self._generation_tokens, usage.completion_tokens),
            (self._judge_calls, usage.judge_calls),
            (self._blocks, usage.peak_blocks),
            (self._unshared, usage.peak_blocks_unshared),
        ):
            counter.labels(*labels).inc(count)

    def failed(self, status: str) -> None:
        """Count a request that got no answer; `status` is HTTP's, or "disconnected"."""
        self._failure.labels(self._model_name, status).inc()

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"stagebeam:{name}", words, ["model_name"], registry=self._registry, buckets=buckets
        )

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"stagebeam:{name}", words, ["model_name", *labels], registry=self._registry)


class _EngineGauges(Collector):
    """The engine's counts at the moment they are asked for."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterator[GaugeMetricFamily]:
        stats = self._engine.stats()
        used = stats["num_used"]
        for name, words, value in (
            ("num_requests_running", "Questions admitted.", stats["num_running"]),
            ("num_requests_waiting", "Questions not yet admitted.", stats["num_waiting"]),
            ("kv_cache_usage_perc", "Used share of KV blocks, 0 to 1.", used / stats["num_blocks"]),
            (
                "kv_sharing_ratio",
                "KV blocks that would be used without sharing, over those used.",
                stats["num_logical"] / used if used else 1.0,
            ),
            ("num_images_in_use", "Image slots held.", stats["num_images_in_use"]),
        ):
            gauge = GaugeMetricFamily(f"stagebeam:{name}", words, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
