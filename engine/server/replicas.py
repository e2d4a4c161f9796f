"""Engines as replicas of a Ray Serve application, and the choice of the replica a request goes to.

A replica is a whole server (app.py) without a socket: it is handed HTTP requests and hands back what
its application sends. Invariant: a caller that goes away ends its questions, as a closed connection
would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.engine import Engine
from stagebeam.engine.server.app import create_app
from stagebeam.engine.server.settings import ServerSettings

APPLICATION = "stagebeam"
STATS_SECONDS = 0.5  # between two reports of a replica's load
MANY_WAITING = 1  # a replica with so many questions not admitted is asked last


class LeastLoaded(FIFOMixin, RequestRouter):
    """Replicas whose engine has room before those whose questions wait for blocks or image slots.

    Among equals Ray takes the one with the fewest requests outstanding, which it asks them for.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        ranks: dict[bool, list[RunningReplica]] = {False: [], True: []}
        for replica in candidate_replicas:
            ranks[is_full(replica.routing_stats)].append(replica)
        return [rank for rank in ranks.values() if rank]


def is_full(stats: dict[str, Any]) -> bool:
    """Whether a question would wait at this replica; one that has not reported yet has room."""
    return stats.get("num_waiting", 0) >= MANY_WAITING or stats.get("num_free_blocks", 1) == 0


class Replica:
    """One engine and its application."""

    def __init__(self, engine_options: dict[str, Any], settings: ServerSettings) -> None:
        self._asked = AsyncEngine(Engine(**engine_options))
        self._app = create_app(self._asked, settings)

    async def http(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Any]]:
        """Answer one request; yields the ASGI messages, those that have come together in one list."""
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        is_gone = asyncio.Event()
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            await is_gone.wait()
            return {"type": "http.disconnect"}

        running = asyncio.create_task(self._app({**scope, "state": {}}, receive, outbox.put))
        running.add_done_callback(lambda _: outbox.put_nowait(None))
        try:
            is_open = True
            while is_open:
                messages = [await outbox.get()]
                messages += [outbox.get_nowait() for _ in range(outbox.qsize())]
                is_open = messages[-1] is not None
                yield messages if is_open else messages[:-1]
            await running
        finally:
            is_gone.set()

    async def metrics(self) -> str:
        """This replica's Prometheus text."""
        return self._app.state.service.metrics.text().decode()

    def record_routing_stats(self) -> dict[str, Any]:
        """What the router knows of this replica."""
        stats = self._asked.engine.stats()
        return {"num_waiting": stats["num_waiting"], "num_free_blocks": stats["num_free"]}

    def check_health(self) -> None:
        """Called by Ray; raising has the replica replaced."""
        self._asked.engine.stats()


def start_replicas(
    engine_options: dict[str, Any],
    settings: ServerSettings,
    *,
    num_replicas: int,
    num_cpus: float,
    num_gpus: float,
) -> DeploymentHandle:
    """Run the application on the Ray that this process is connected to; returns once it is up.

    num_cpus, num_gpus: of one replica
    """
    serve.start(http_options={"location": "NoServer"})  # front.py is the way in
    deployment = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=num_replicas,
        max_ongoing_requests=4 * settings.max_questions,  # the replica itself refuses, with a 429
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        request_router_config=RequestRouterConfig(
            request_router_class=LeastLoaded, request_routing_stats_period_s=STATS_SECONDS
        ),
    )
    application = deployment.bind(engine_options, settings)
    return serve.run(application, name=APPLICATION, route_prefix=None)
