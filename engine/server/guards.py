"""What stands before every request: its id, the API key, the size of its body.

Plain ASGI, so that streaming and disconnects pass through untouched.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stagebeam.engine.server.problems import problem_response

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Guards:
    """Gives each request an id (the client's X-Request-Id where it sent one), refuses what /v1 must
    not see."""

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                head = (b"x-request-id", request_id.encode("latin-1"))
                message["headers"] = [*message.get("headers", ()), head]
            await send(message)

        if scope["path"].startswith("/v1/") and not self._is_known(headers):
            response = problem_response(
                401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key"
            )
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send_with_id)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            await self._too_large()(scope, receive, send_with_id)
            return
        await self._app(scope, self._counted(receive), send_with_id)

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        if self._api_key is None:
            return True
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._api_key)

    def _too_large(self) -> Any:
        return problem_response(413, self._limit_words())

    def _limit_words(self) -> str:
        return f"the request's body is larger than {self._max_body_bytes} bytes"

    def _counted(self, receive: Receive) -> Receive:
        """A body that comes in chunks is stopped once it is too large."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, self._limit_words())
            return message

        return counted
