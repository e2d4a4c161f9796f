"""A chat request on the engine: its questions, its reply as a whole or as a stream.

One question a choice. Invariant: however a request ends (answered, failed, its client gone, the
server stopping), none of its questions runs on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from stagebeam.engine.async_engine import AsyncEngine, AsyncHandle
from stagebeam.engine.events import Done, Event, Failed, event_to_dict
from stagebeam.engine.outputs import Answer
from stagebeam.engine.server.image_urls import read_image_url
from stagebeam.engine.server.metrics import Metrics
from stagebeam.engine.server.problems import Problem, as_problem
from stagebeam.engine.server.protocol import ChatRequest, ImagePart
from stagebeam.engine.server.reply import Delta, Transcript
from stagebeam.engine.server.settings import ServerSettings

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Service:
    """What every request shares; `num_questions` are in flight."""

    asked: AsyncEngine
    settings: ServerSettings
    metrics: Metrics
    num_questions: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def take(self, count: int) -> None:
        """Count questions in, or refuse them."""
        if self.num_questions + count > self.settings.max_questions:
            raise Problem(
                429,
                f"{self.num_questions} questions are in flight, at most "
                f"{self.settings.max_questions} are taken; try again later",
                code="queue_full",
            )
        self.num_questions += count


class ClientGone(Exception):
    """The client has disconnected; nobody hears the rest."""


@dataclass(slots=True)
class Chat:
    """One request while it runs."""

    service: Service
    body: ChatRequest
    request: Request
    began: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))
    handles: list[AsyncHandle] = field(default_factory=list)
    transcripts: list[Transcript] = field(default_factory=list)
    is_counted: bool = False

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.request.state.request_id}"

    async def start(self) -> None:
        """Check the request, read its image and submit its questions."""
        service, body, settings = self.service, self.body, self.service.settings
        if body.model not in (None, settings.model_name):
            raise Problem(
                404,
                f"the model {body.model!r} is not served here, {settings.model_name!r} is",
                param="model",
                code="model_not_found",
            )
        service.take(body.n)
        self.is_counted = True
        deadline = min(
            body.deadline_seconds or settings.deadline_seconds, settings.deadline_seconds
        )
        messages, urls = as_engine_messages(body)
        image = None
        if urls:
            image = await asyncio.to_thread(
                read_image_url,
                urls[0],
                max_bytes=settings.max_image_bytes,
                allow_remote=settings.allow_remote_images,
                folder=settings.image_folder,
            )
        engine = service.asked.engine
        for choice in range(body.n):
            handle = await service.asked.submit(
                messages,
                image,
                search=body.search_params(settings),
                sampling=body.sampling_params(engine.default_sampling, choice),
                judge=body.judge_params(settings),
                deadline_seconds=max(1e-3, deadline - (time.perf_counter() - self.began)),
            )
            self.handles.append(handle)
            self.transcripts.append(Transcript(plan=engine.plan, stop=body.stop_strings()))

    def end(self) -> None:
        """Stop what still runs."""
        for handle in self.handles:
            handle.cancel()
        if self.is_counted:
            self.is_counted = False
            self.service.num_questions -= self.body.n

    async def follow(self) -> AsyncGenerator[tuple[int, Event], None]:
        """(choice, event) of all questions as they come, up to each one's `Done`.

        Errors: what ended a question, and ClientGone; either ends the whole request.
        """
        inbox: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

        async def watch() -> None:
            while (await self.request.receive())["type"] != "http.disconnect":
                pass
            inbox.put_nowait((-1, None))

        async def listen(choice: int, handle: AsyncHandle) -> None:
            async for event in handle.events():
                inbox.put_nowait((choice, event))

        tasks = [asyncio.create_task(watch())]
        tasks += [asyncio.create_task(listen(i, h)) for i, h in enumerate(self.handles)]
        try:
            num_left = len(self.handles)
            while num_left:
                choice, event = await inbox.get()
                if event is None:
                    raise ClientGone
                if isinstance(event, Failed):
                    await self.handles[choice].result()
                yield choice, event
                num_left -= isinstance(event, Done)
        finally:
            for task in tasks:
                task.cancel()
            self.end()

    async def whole(self) -> dict[str, Any]:
        """The reply in one piece."""
        answers: dict[int, Answer] = {}
        async with aclosing(self.follow()) as events:
            async for choice, event in events:
                self.transcripts[choice].take(event)
                if isinstance(event, Done):
                    self.transcripts[choice].finish()
                    answers[choice] = self._answered(event)
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.service.settings.model_name,
            "choices": [
                {
                    "index": i,
                    "message": {
                        "role": "assistant",
                        "content": self.transcripts[i].split.reply,
                        "reasoning_content": self.transcripts[i].split.reasoning or None,
                    },
                    "logprobs": self._logprobs(self.transcripts[i].tokens),
                    "finish_reason": self._finish_reason(i, answers[i]),
                    "stagebeam": self._search_report(answers[i]),
                }
                for i in range(self.body.n)
            ],
            "usage": self._usage([answers[i] for i in range(self.body.n)]),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """The reply as server-sent events of chat.completion.chunk objects, then [DONE]."""
        answers: list[Answer] = []
        is_heard = False
        try:
            for choice in range(self.body.n):
                yield self._chunk(choice, {"role": "assistant", "content": ""})
            async with aclosing(self.follow()) as events:
                async for choice, event in events:
                    for chunk in self._chunks(choice, event):
                        yield chunk
                    if isinstance(event, Done):
                        answers.append(self._answered(event))
            if self.body.stream_options is not None and self.body.stream_options.include_usage:
                yield _sse({**self._frame(), "choices": [], "usage": self._usage(answers)})
            is_heard = True
            yield b"data: [DONE]\n\n"
        except ClientGone:
            pass
        except Exception as error:  # too late for a status: the stream ends with the fault
            is_heard = True
            problem = as_problem(error)
            self.failed(problem, error)
            yield _sse(problem.body())
            yield b"data: [DONE]\n\n"
        finally:
            if not is_heard:  # also where the response was cancelled, or its end never asked for
                self.service.metrics.failed("disconnected")
            self.end()

    def failed(self, problem: Problem, error: BaseException) -> None:
        """Count and log a fault."""
        self.service.metrics.failed(str(problem.status))
        if problem.status == 500:
            logger.error("request %s failed", self.id, exc_info=error)

    def _chunks(self, choice: int, event: Event) -> list[bytes]:
        transcript = self.transcripts[choice]
        chunks = []
        if self.body.stream_events:
            chunks.append(self._chunk(choice, {}, stagebeam={"event": event_to_dict(event)}))
        delta = transcript.finish() if isinstance(event, Done) else transcript.take(event)
        if delta is not None and delta.reasoning:
            chunks.append(self._chunk(choice, {"reasoning_content": delta.reasoning}))
        if delta is not None and (delta.reply or delta.tokens):
            chunks.append(self._content_chunk(choice, delta))
        if isinstance(event, Done):
            assert event.answer is not None
            reason = self._finish_reason(choice, event.answer)
            report = self._search_report(event.answer)
            chunks.append(self._chunk(choice, {}, finish_reason=reason, stagebeam=report))
        return chunks

    def _content_chunk(self, choice: int, delta: Delta) -> bytes:
        return self._chunk(
            choice, {"content": delta.reply}, logprobs=self._logprobs(list(delta.tokens))
        )

    def _chunk(
        self,
        choice: int,
        delta: dict[str, str],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        stagebeam: dict[str, Any] | None = None,
    ) -> bytes:
        entry: dict[str, Any] = {
            "index": choice,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        if stagebeam is not None:
            entry["stagebeam"] = stagebeam
        return _sse({**self._frame(), "choices": [entry]})

    def _frame(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.service.settings.model_name,
        }

    def _answered(self, event: Done) -> Answer:
        assert event.answer is not None
        self.service.metrics.answered(event.answer, time.perf_counter() - self.began)
        return event.answer

    def _finish_reason(self, choice: int, answer: Answer) -> str:
        is_cut = answer.finish_reason == "length" and not self.transcripts[choice].split.is_stopped
        return "length" if is_cut else "stop"

    def _usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """OpenAI's counts; reasoning is all that was sampled but the replies' own tokens."""
        prompt = sum(answer.usage.prompt_tokens for answer in answers)
        sampled = sum(answer.usage.completion_tokens for answer in answers)
        replies = sum(len(transcript.tokens) for transcript in self.transcripts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
            "completion_tokens_details": {"reasoning_tokens": max(0, sampled - replies)},
        }

    def _logprobs(self, tokens: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        pieces = self.service.asked.engine.token_bytes
        content = []
        for token_id, logprob in tokens:
            piece = pieces[token_id] or b""
            content.append(
                {
                    "token": piece.decode("utf-8", "replace"),
                    "logprob": logprob,
                    "bytes": list(piece),
                    "top_logprobs": [],
                }
            )
        return {"content": content}

    def _search_report(self, answer: Answer) -> dict[str, Any]:
        data = answer.to_dict()
        names = ["seed", "strategy", "beam_size", "finish_reason", "usage", "timings"]
        if self.body.include_stages:
            names.append("stages")
        return {name: data[name] for name in names}


class ChatStream(StreamingResponse):
    """A chat's stream; whatever ends the response ends the chat's questions."""

    def __init__(self, chat: Chat) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chat.stream(), media_type="text/event-stream", headers=headers)
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._chat.end()


def as_engine_messages(body: ChatRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages in the engine's form, an image first in its turn, and the images' URLs."""
    messages: list[dict[str, Any]] = []
    urls: list[str] = []
    for message in body.messages:
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            messages.append({"role": role, "content": [{"type": "text", "text": message.content}]})
            continue
        images = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
        urls += images
        texts = [part.text for part in message.content if not isinstance(part, ImagePart)]
        content = [{"type": "image"} for _ in images]
        content += [{"type": "text", "text": text} for text in texts]
        messages.append({"role": role, "content": content})
    if len(urls) > 1:
        raise Problem(
            400, f"a chat may hold one image, got {len(urls)}", param="messages", code="image_count"
        )
    if not any(part.get("text", "").strip() for part in messages[-1]["content"]):
        raise Problem(400, "the last message holds no text; ask something", param="messages")
    return messages, urls


def _sse(data: dict[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
