"""Faults as HTTP answers in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from stagebeam.engine.errors import (
    CancelledError,
    CapacityError,
    DeadlineError,
    ImageError,
    InvalidInputError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "deadline_error",
}


class Problem(Exception):
    """A fault with its status."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        return problem_body(self.status, self.message, self.param, self.code)

    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse(self.body(), self.status, headers)


def as_problem(error: BaseException) -> Problem:
    """What a client is told of an exception; an unexpected one's words stay in the log."""
    match error:
        case Problem():
            return error
        case DeadlineError():
            return Problem(504, str(error), code="deadline")
        case CancelledError():
            return Problem(503, "the server is shutting down", code="unavailable")
        case InvalidInputError() | ImageError() | CapacityError():
            return Problem(400, str(error))
    return Problem(500, "the engine failed on this request; see the server's log")


def problem_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem_response(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> JSONResponse:
    return JSONResponse(problem_body(status, message, param, code), status)
