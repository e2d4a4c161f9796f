"""The application: routes, faults as OpenAI's errors, and the OpenAPI document.

`create_app` closes over nothing global, so a process may hold several.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.server.chat import Chat, ChatStream, ClientGone, Service
from stagebeam.engine.server.guards import Guards
from stagebeam.engine.server.metrics import Metrics
from stagebeam.engine.server.problems import Problem, as_problem, problem_body
from stagebeam.engine.server.protocol import (
    ChatCompletion,
    ChatRequest,
    ErrorBody,
    Health,
    ModelList,
    ServedStrategy,
)
from stagebeam.engine.server.settings import ServerSettings
from stagebeam.engine.server.validation import validation_problem

_PAGE = Path(__file__).with_name("page.html")
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "A fault of the request's"},
    401: {"model": ErrorBody, "description": "No valid API key"},
    404: {"model": ErrorBody, "description": "Another model is served"},
    413: {"model": ErrorBody, "description": "The body is too large"},
    429: {"model": ErrorBody, "description": "Too many questions are in flight"},
    503: {"model": ErrorBody, "description": "The server is stopping"},
    504: {"model": ErrorBody, "description": "The deadline passed"},
    "default": {"model": ErrorBody, "description": "Any other fault"},
}
_CLIENT_GONE = 499  # nginx's number; nobody reads it

router = APIRouter()


def create_app(asked: AsyncEngine, settings: ServerSettings) -> FastAPI:
    """The ASGI application of one engine, which the caller closes."""
    app = FastAPI(
        title="stagebeam",
        description="Staged reasoning with stage-level beam search, behind OpenAI's chat API.",
        version="1",
        docs_url=None,  # the usual pages load scripts from elsewhere
        redoc_url=None,
    )
    metrics = Metrics(asked.engine, settings.model_name)
    app.state.service = Service(asked, settings, metrics)
    app.include_router(router)
    app.add_middleware(Guards, api_key=settings.api_key, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Problem, _on_problem)
    return app


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {
            "description": "The reply; with `stream` as server-sent events",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **_ERRORS,
    },
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a chat whose last turn is the user's, about at most one image."""
    chat = Chat(request.app.state.service, body, request)
    try:
        await chat.start()
        if body.stream:
            return ChatStream(chat)
        return JSONResponse(await chat.whole())
    except ClientGone:
        chat.end()
        chat.service.metrics.failed("disconnected")
        return Response(status_code=_CLIENT_GONE)
    except BaseException as error:
        chat.end()
        if not isinstance(error, Exception):  # the server is stopping
            raise
        problem = as_problem(error)
        chat.failed(problem, error)
        return problem.response()


@router.get("/v1/models", response_model=ModelList, responses={401: _ERRORS[401]})
async def models(request: Request) -> Response:
    """The one model that is served, with its stages and limits."""
    service: Service = request.app.state.service
    engine, settings = service.asked.engine, service.settings
    sampling = engine.default_sampling
    card = {
        "id": settings.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "stagebeam",
        "max_model_len": engine.max_model_len,
        "stagebeam": {
            "stages": [stage.name for stage in engine.plan.stages],
            "strategies": list(get_args(ServedStrategy)),
            "strategy": settings.search.strategy,
            "beam_size": settings.search.beam_size,
            "max_branches": engine.max_branches,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "has_vision": engine.processor.has_vision,
        },
    }
    return JSONResponse({"object": "list", "data": [card]})


@router.get("/health", response_model=Health)
async def health() -> dict[str, str]:
    """That the server takes requests."""
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> Response:
    """The page that asks a question and shows the search."""
    headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_problem(error.errors(), error.body, ChatRequest.model_fields).response()


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = str(error.detail)
    if error.status_code in (404, 405):
        words += f": {request.method} {request.url.path}; /openapi.json lists what there is"
    body = problem_body(error.status_code, words)
    return JSONResponse(body, error.status_code, error.headers)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()
