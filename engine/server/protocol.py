"""The bodies of requests and replies, in OpenAI's shapes with our search options as extra fields.

A field that is not listed is refused, so that a misspelt option is heard of; OpenAI's fields that
change nothing here are listed and taken only at the value that asks for nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stagebeam.engine.params import (
    MAX_BEAM_SIZE,
    MAX_SEED,
    JudgeMode,
    JudgeParams,
    SamplingParams,
    Schedule,
    SearchParams,
    Tournament,
)
from stagebeam.engine.server.settings import ServerSettings

MAX_CHOICES = 64
MAX_STOP_STRINGS = 16

ServedStrategy = Literal["greedy", "single", "best_of_n", "sentence_beam", "stage_beam"]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(BaseModel):
    """A turn; what else a reply's message held (reasoning, refusals) is left out."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(Strict):
    include_usage: bool = False


class TextFormat(Strict):
    type: Literal["text"]


class ChatRequest(Strict):
    """A chat completion request.

    max_tokens (or max_completion_tokens) is per stage, as everywhere in the engine. The fields from
    `strategy` on are ours.
    """

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), le=MAX_SEED)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=0, description="Alternatives are not kept.")
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    response_format: TextFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    strategy: ServedStrategy | None = None
    beam_size: int | None = Field(None, ge=1, le=MAX_BEAM_SIZE)
    max_rounds: int | None = Field(None, ge=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    judge_mode: JudgeMode | None = None
    tournament: Tournament | None = None
    schedule: Schedule | None = None
    both_orders: bool | None = None
    gate: bool | None = None
    vote_weight: float | None = Field(None, ge=0)
    deadline_seconds: float | None = Field(None, gt=0)
    include_stages: bool = False
    stream_events: bool = False

    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def search_params(self, settings: ServerSettings) -> SearchParams:
        return _with(
            settings.search,
            strategy=self.strategy,
            beam_size=self.beam_size,
            max_rounds=self.max_rounds,
        )

    def judge_params(self, settings: ServerSettings) -> JudgeParams:
        return _with(
            settings.judge,
            mode=self.judge_mode,
            tournament=self.tournament,
            schedule=self.schedule,
            both_orders=self.both_orders,
            gate=self.gate,
            vote_weight=self.vote_weight,
        )

    def sampling_params(self, defaults: SamplingParams, choice: int) -> SamplingParams:
        """Choice i of a seeded request has the seed after choice i - 1's."""
        seed = None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1)
        return _with(
            defaults,
            seed=seed,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            max_tokens=self.max_completion_tokens or self.max_tokens,
        )


def _with(defaults: Any, **changes: Any) -> Any:
    return replace(defaults, **{name: v for name, v in changes.items() if v is not None})


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]


class ReplyMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    reasoning_content: str | None


class Choice(BaseModel):
    """`stagebeam`: seed, strategy, beam size, how the search ended, usage, timings, and the stages
    where they were asked for."""

    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]
    stagebeam: dict[str, Any]


class CompletionDetails(BaseModel):
    reasoning_tokens: int


class UsageCounts(BaseModel):
    """completion_tokens are all sampled tokens, losing candidates included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageCounts


class ModelCard(BaseModel):
    """`stagebeam`: stages, strategies, defaults and limits."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    stagebeam: dict[str, Any]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail
