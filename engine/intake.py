"""From a caller's arguments to a question that can run: checked, tokenised, seeded, and sure to fit.

Takes no block and no image slot. Every fault of the caller is a ValueError from here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from stagebeam.bindings._core import philox4x32
from stagebeam.engine.arguments import check_seconds, check_type
from stagebeam.engine.errors import CapacityError, InvalidInputError
from stagebeam.engine.events import Done, Listener
from stagebeam.engine.generate import finish_generate, generate_policy
from stagebeam.engine.handle import Handle
from stagebeam.engine.judge.asker import Asker
from stagebeam.engine.memory.plan import MemoryPlan
from stagebeam.engine.messages import QuestionText, as_messages, last_text
from stagebeam.engine.models.images import ImageSource
from stagebeam.engine.models.processor import PreparedImage, Processor
from stagebeam.engine.outputs import Answer, SearchResult
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.question import Question, Scorer
from stagebeam.engine.scheduler import stage_widths, worst_case_blocks
from stagebeam.engine.search.policies import make_policy
from stagebeam.engine.search.requests import Until
from stagebeam.engine.stages import JudgePrompts, StagePlan

_SEED_DOMAIN = 0xFFFFFFFE  # counter word of the questions' seeds; no token id or draw uses it

JUDGED_STRATEGIES = ("stage_beam", "best_of_n", "sentence_beam")


class Intake:
    """Builds questions for one engine; thread-safe."""

    def __init__(
        self,
        processor: Processor,
        plan: StagePlan,
        memory: MemoryPlan,
        *,
        max_branches: int,
        add_bos: bool,
        seed: int,
        bos_id: int | None,
        stop: Callable[[Question, BaseException], None],
    ) -> None:
        self._processor = processor
        self._plan = plan
        self._memory = memory
        self._max_branches = max_branches
        self._add_bos = add_bos
        self._seed = seed
        self._bos_id = bos_id
        self._stop = stop
        self._num_questions = 0
        self._checked_words: set[tuple[JudgePrompts, str, bool]] = set()
        self._id_lock = threading.Lock()

    def question(
        self,
        question: QuestionText,
        image: ImageSource | None,
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
        has_events: bool = False,
        on_event: Listener | None = None,
        deadline_seconds: float | None = None,
    ) -> Question:
        """A question that a policy runs; None takes the defaults of the engine."""
        if on_event is not None and not callable(on_event):
            raise InvalidInputError(f"on_event must be None or callable, got {on_event!r}")
        check_seconds("deadline_seconds", deadline_seconds)
        built = self.session(
            question,
            image,
            sampling=sampling,
            judge=judge,
            plan=plan,
            search=search,
            has_events=has_events,
            on_event=on_event,
        )
        if deadline_seconds is not None:
            built.deadline = built.submitted_at + deadline_seconds
        if built.search.strategy == "swires" and scorer is None:
            raise InvalidInputError(
                'strategy "swires" needs a scorer: a function (question, texts) -> scores'
            )
        built.scorer = scorer
        built.policy = make_policy(
            built.text, built.plan, built.search, built.sampling, built.judge, built.seed
        )
        self._check_words(built)
        widths = stage_widths(built.search, built.plan, built.sampling.max_tokens)
        self._check_fits(built, widths)
        return built

    def session(
        self,
        question: QuestionText,
        image: ImageSource | None,
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        has_events: bool = False,
        on_event: Listener | None = None,
    ) -> Question:
        """A question without a policy."""
        check_type("search", search, SearchParams)
        check_type("sampling", sampling, SamplingParams)
        check_type("judge", judge, JudgeParams)
        check_type("plan", plan, StagePlan)
        messages = as_messages(question, image is not None)
        prepared = None if image is None else self._processor.preprocess(image)
        rendered = self._processor.render(messages)
        return self._build(
            last_text(messages),
            self._processor.encode(rendered, add_bos=self._add_bos),
            prepared,
            search=search or SearchParams(),
            sampling=sampling or self.default_sampling(),
            judge=judge or JudgeParams(),
            plan=plan or self._plan,
            has_events=has_events,
            on_event=on_event,
        )

    def prompt(self, prompt: str, sampling: SamplingParams | None) -> Question:
        """Plain sampling of a raw prompt, the begin-of-text id put before it where it is missing."""
        check_type("sampling", sampling, SamplingParams)
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInputError(f"a prompt must be a non-empty string, got {prompt!r}")
        token_ids = self._processor.encode(prompt)
        if self._bos_id is not None and token_ids[:1] != [self._bos_id]:
            token_ids = [self._bos_id, *token_ids]
        sampling = sampling or self.default_sampling()
        built = self._build(
            prompt,
            token_ids,
            None,
            search=SearchParams(strategy="single", beam_size=sampling.n),
            sampling=sampling,
            judge=JudgeParams(),
            plan=self._plan,
            has_events=False,
        )
        built.policy = generate_policy(built.sampling, Until(goals=sampling.stop))
        built.finish = finish_generate
        self._check_fits(built, [(sampling.n, sampling.max_tokens)])
        return built

    def default_sampling(self) -> SamplingParams:
        """The checkpoint's generation defaults over the published ones."""
        return SamplingParams(**self._processor.generation_defaults)

    def _build(
        self,
        text: str,
        token_ids: list[int],
        image: PreparedImage | None,
        *,
        search: SearchParams,
        sampling: SamplingParams,
        judge: JudgeParams,
        plan: StagePlan,
        has_events: bool,
        on_event: Listener | None = None,
    ) -> Question:
        position = self._processor.image_token_position(token_ids)
        if (position is None) != (image is None):
            raise InvalidInputError(
                "the prompt and the image disagree: "
                + (
                    "an image token but no image"
                    if image is None
                    else "an image but no image token"
                )
                + "; pass image= and leave image tokens out of the question"
            )
        if len(token_ids) >= self._memory.max_model_len:
            raise CapacityError(
                f"the prompt has {len(token_ids)} tokens and leaves no room in the context of "
                f"{self._memory.max_model_len}; shorten the question or raise max_model_len"
            )
        with self._id_lock:
            number = self._num_questions
            self._num_questions += 1
        seed = self._derive_seed(number) if sampling.seed is None else sampling.seed
        asker = Asker(
            self._processor,
            plan.prompts,
            judge,
            text,
            has_image=image is not None,
            add_bos=self._add_bos,
        )
        question = Question(
            id=number,
            text=text,
            prompt_ids=token_ids,
            image=image,
            image_position=position,
            plan=plan,
            search=search,
            sampling=replace(sampling, seed=seed),
            judge=judge,
            seed=seed,
            asker=asker,
            handle=Handle(lambda error: self._stop(question, error), has_events, on_event),
            finish=_finish_answer,
        )
        question.usage.prompt_tokens = len(token_ids)
        return question

    def _derive_seed(self, number: int) -> int:
        words = philox4x32(self._seed, (number & 0xFFFFFFFF, _SEED_DOMAIN, number >> 32, 0))
        return words[0] | words[1] << 32

    def _check_words(self, question: Question) -> None:
        """Refuse a plan's judge whose verdicts cannot be compared; looked at once a plan."""
        if question.search.strategy not in JUDGED_STRATEGIES:
            return
        has_gate = question.judge.has_gate and any(s.has_gate for s in question.plan.stages)
        words = (question.plan.prompts, question.judge.mode, has_gate)
        if words not in self._checked_words:
            question.asker.check(has_gate=has_gate)
            self._checked_words.add(words)

    def _check_fits(self, question: Question, widths: Sequence[tuple[int, int]]) -> None:
        """Refuse a question that can never fit, with the arithmetic."""
        widest = max(n for n, _ in widths)
        if widest > self._max_branches:
            raise CapacityError(
                f"this search decodes {widest} branches at once but max_branches is "
                f"{self._max_branches}; lower beam_size or raise max_branches"
            )
        num_prompt = len(question.prompt_ids)
        needed = worst_case_blocks(
            num_prompt, widths, self._memory.max_model_len, self._memory.block_size
        )
        if needed > self._memory.num_blocks:
            tokens = max(tokens for n, tokens in widths if n == widest)
            raise CapacityError(
                f"this question may need {needed} KV blocks of {self._memory.block_size} tokens (a trunk that "
                f"starts with {num_prompt} prompt tokens, then up to {widest} branches of up to "
                f"{tokens} tokens in a context of {self._memory.max_model_len}) but the cache has "
                f"{self._memory.num_blocks}; lower beam_size, max_tokens or max_model_len, or raise "
                f"kv_cache_bytes (now {self._memory.kv_cache_bytes})"
            )


def _finish_answer(question: Question, result: SearchResult) -> None:
    answer = Answer(
        question=question.text,
        text=result.text,
        conclusion=question.plan.conclusion(result.text),
        stages=result.stages,
        finish_reason=result.finish_reason,
        seed=question.seed,
        strategy=question.search.strategy,
        beam_size=question.search.beam_size,
        usage=question.usage,
        timings=question.timings,
        image_png=question.image.png if question.image is not None else None,
    )
    question.handle.finish(answer, Done(answer=answer))
