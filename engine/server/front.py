"""The way in to replicas: takes HTTP requests, has a replica answer each, and outlives any of them.

Plain ASGI. Invariant: a request whose replica dies is asked again of another one as long as its
client has heard no token; later it ends with an error in words. None is lost silently.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.exceptions import RayActorError, RayError, WorkerCrashedError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stagebeam.engine.server.problems import problem_body, problem_response

logger = logging.getLogger(__name__)

MAX_TRIES = 4
METRICS_SECONDS = 5.0
_LOST = (RayActorError, WorkerCrashedError)
_OPENING = b'"delta":{"role":'  # of a stream's chunks that hold no token
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string")


class Front:
    """An ASGI application over replicas."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas
        self._registry = CollectorRegistry()
        self._lost = Counter(
            "stagebeam:replica_lost_requests",
            "Requests whose replica died, by what became of them.",
            ["outcome"],
            registry=self._registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", f"{scope['type']} is not served"
        if scope["path"] == "/metrics":
            await (await self._metrics())(scope, receive, send)
            return
        try:
            body = await _read(receive)
        except HTTPException as error:
            await problem_response(error.status_code, str(error.detail))(scope, receive, send)
            return
        if body is None:
            return
        asking = asyncio.create_task(self._ask(_plain(scope), body, send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
        finally:
            for task in (asking, leaving):
                task.cancel()
            await asyncio.wait((asking, leaving))

    async def _ask(self, scope: dict[str, Any], body: bytes, send: Send) -> None:
        for _ in range(MAX_TRIES):
            reply = _Reply(send)
            messages = self._replicas.options(stream=True).http.remote(scope, body)
            try:
                async for batch in messages:
                    for message in batch:
                        await reply.take(message)
                return
            except _LOST as error:
                logger.warning("a replica died with a request: %s", type(error).__name__)
                if reply.is_begun:
                    self._lost.labels("broken").inc()
                    await reply.break_off()
                    return
                self._lost.labels("retried").inc()
            except RayError as error:
                logger.error("a replica failed on a request", exc_info=error)
                await reply.refuse(500, "the engine failed on this request; see the server's log")
                return
            finally:
                messages.cancel()  # the client is gone, or all has come and this has no effect
        self._lost.labels("given up").inc()
        await reply.refuse(503, f"{MAX_TRIES} replicas died with this request; try again later")

    async def _metrics(self) -> Response:
        broadcast = self._replicas.broadcast("metrics")
        with suppress(RayError, TimeoutError):
            texts = await asyncio.to_thread(broadcast.results, timeout_s=METRICS_SECONDS)
            merged = CollectorRegistry()
            merged.register(_Merged(texts))
            text = generate_latest(merged) + generate_latest(self._registry)
            return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
        return problem_response(503, "a replica does not tell its metrics; try again later")


class _Reply:
    """What a client is sent; its first messages wait until a token comes with them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._is_stream = False
        self.is_begun = False

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [h for h in message["headers"] if h[0] != b"x-request-id"]  # ours says it
            message = {**message, "headers": kept}
            self._is_stream = dict(kept).get(b"content-type", b"").startswith(b"text/event-stream")
        self._held.append(message)
        is_opening = self._is_stream and _OPENING in message.get("body", b"")
        if not is_opening and message["type"] == "http.response.body":
            self.is_begun = True
            for held in self._held:
                await self._send(held)
            self._held.clear()

    async def break_off(self) -> None:
        """End a reply whose rest is lost; a stream says so, of a body the missing end does."""
        if self._is_stream:
            fault = problem_body(503, "the replica that answered has died", code="replica_lost")
            text = f"data: {json.dumps(fault)}\n\ndata: [DONE]\n\n"
            await self._send({"type": "http.response.body", "body": text.encode()})

    async def refuse(self, status: int, words: str) -> None:
        if self.is_begun:
            await self.break_off()
            return
        response = problem_response(status, words)
        await self._send(
            {"type": "http.response.start", "status": status, "headers": response.raw_headers}
        )
        await self._send({"type": "http.response.body", "body": response.body})


class _Merged(Collector):
    """The replicas' metrics with a label that tells them apart."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, text in enumerate(self._texts):
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": str(number)}
                    merged.add_sample(sample.name, labels, sample.value)
        return families.values()


async def _read(receive: Receive) -> bytes | None:
    """The request's body; None where its client has gone."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _plain(scope: Scope) -> dict[str, Any]:
    """The part of a request's scope that can travel, with the request's id among the headers."""
    headers = [h for h in scope["headers"] if h[0] not in (b"x-request-id", b"authorization")]
    headers.append((b"x-request-id", scope["state"]["request_id"].encode()))
    return {**{name: scope[name] for name in _SCOPE}, "headers": headers, "root_path": ""}
