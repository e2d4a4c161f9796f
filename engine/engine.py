"""The public face: load a checkpoint once, then answer questions about images.

Builds the parts and turns a caller's arguments into questions; the loop does the rest.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stagebeam.engine.arguments import as_arguments, check_type
from stagebeam.engine.comparison import Comparison
from stagebeam.engine.decoding import Decoder
from stagebeam.engine.errors import InvalidInputError
from stagebeam.engine.events import Listener
from stagebeam.engine.handle import Handle
from stagebeam.engine.intake import Intake
from stagebeam.engine.loop import EngineLoop
from stagebeam.engine.messages import QuestionText
from stagebeam.engine.models.images import ImageSource
from stagebeam.engine.outputs import Answer, GenerateOutput
from stagebeam.engine.params import MAX_SEED, JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.parts import load_parts
from stagebeam.engine.question import Scorer
from stagebeam.engine.search.requests import Until, Verdict
from stagebeam.engine.session import BranchRef, Session
from stagebeam.engine.stages import LLAVA_COT_PLAN, StagePlan
from stagebeam.engine.step import lead

PREFILL_CHUNK_SIZE = 512
MAX_PREFILL_TOKENS = 2048


class Engine:
    """A loaded checkpoint and its caches; thread-safe, one background thread does the work.

    path:            a HF folder or hub id; None is the bundled checkpoint
    device:          "auto" is CUDA where there is one, else the CPU
    dtype:           of the weights: "auto" is bfloat16, or float32, float16, and on a CPU int8, int4
    kv_cache_dtype:  of the caches: "auto", and on a CPU float32, bfloat16, int8
    backend:         which kernels run; "auto" takes the fastest available, which on a CPU is the
                     native program; "reference" is PyTorch
    max_model_len:   tokens a sequence may have; None is the model's own limit or what the cache holds
    kv_cache_bytes:  bytes of the paged KV cache; None takes a share of the free memory
    num_image_slots: images held encoded; None takes a share too
    max_branches:    the most rows of a decode step
    num_threads:     of the native program; None is one a physical core, at most PyTorch's number
    poll_steps:      decode steps between two looks at what was sampled; None is 8 on CUDA, where a step
                     is a captured graph, and a few milliseconds' worth of native steps
    tensor_parallel: this process holds a part of the model and rank 0 leads the others, in PyTorch;
                     see `follow`
    seed:            where the seeds of questions without one come from
    add_bos:         put a begin-of-text id before rendered prompts, "auto" as the checkpoint was trained
    plan:            the stage plan; None is the checkpoint's own, else LLaVA-CoT's
    Errors: CheckpointError, CapacityError, InvalidInputError (all ValueErrors).
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        backend: str = "auto",
        max_model_len: int | None = None,
        kv_cache_bytes: int | None = None,
        num_image_slots: int | None = None,
        max_branches: int = 64,
        num_threads: int | None = None,
        poll_steps: int | None = None,
        tensor_parallel: bool = False,
        seed: int = 0,
        add_bos: bool | str = "auto",
        plan: StagePlan | None = None,
    ) -> None:
        check_type("plan", plan, StagePlan)
        if not (isinstance(seed, int) and 0 <= seed <= MAX_SEED):
            raise InvalidInputError(f"seed must be an int in 0 .. 2**64 - 1, got {seed!r}")
        if add_bos not in (True, False, "auto"):
            raise InvalidInputError(f"add_bos must be True, False or 'auto', got {add_bos!r}")
        parts = load_parts(
            path,
            device=device,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            backend=backend,
            max_model_len=max_model_len,
            kv_cache_bytes=kv_cache_bytes,
            num_image_slots=num_image_slots,
            max_branches=max_branches,
            num_threads=num_threads,
            poll_steps=poll_steps,
            tensor_parallel=tensor_parallel,
        )
        self.path = parts.folder
        self.device = parts.device
        self.dtype = parts.precision.weights
        self.kv_cache_dtype = parts.precision.kv_cache
        self.backend = backend
        self.max_branches = max_branches
        self.processor = parts.processor
        self.spec = parts.spec
        self.memory = parts.memory
        self.max_model_len = self.memory.max_model_len
        self.kv_cache, self.image_slots = parts.kv_cache, parts.image_slots
        self.token_bytes = parts.token_bytes
        self.native_model = parts.native_model
        self._has_followers, self._follow = parts.has_followers, parts.follow
        self.plan = plan or self._checkpoint_plan()
        self.add_bos = self.processor.default_add_bos if add_bos == "auto" else bool(add_bos)
        runner = parts.runner
        self._plan_tags = runner.bank.register(sorted(self.plan.close_tags))  # held: it stays
        self._loop = EngineLoop(
            runner,
            Decoder(runner, self.token_bytes, max_branches, self.device),
            max_model_len=self.max_model_len,
            prefill_chunk_size=PREFILL_CHUNK_SIZE,
            max_prefill_tokens=MAX_PREFILL_TOKENS,
        )
        weakref.finalize(self, self._loop.close)  # an engine that nobody holds stops its thread
        self._intake = Intake(
            self.processor,
            self.plan,
            self.memory,
            max_branches=max_branches,
            add_bos=self.add_bos,
            seed=seed,
            bos_id=self.spec.bos_id,
            stop=self._loop.stop,
        )

    def answer(
        self,
        question: QuestionText,
        image: ImageSource | None = None,
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
    ) -> Answer:
        """Answer one question and wait for it; see `submit` for the arguments and errors."""
        handle = self.submit(
            question,
            image,
            search=search,
            sampling=sampling,
            judge=judge,
            plan=plan,
            scorer=scorer,
            has_events=False,
        )
        try:
            return handle.result()
        except KeyboardInterrupt:
            handle.cancel()
            raise

    def submit(
        self,
        question: QuestionText,
        image: ImageSource | None = None,
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
        has_events: bool = True,
        on_event: Listener | None = None,
        deadline_seconds: float | None = None,
    ) -> Handle:
        """Start a question and return at once.

        question: the text, or chat messages in HF's form whose last turn is the user's
        image:    a path, encoded bytes, a PIL image, or None
        sampling: None takes the checkpoint's generation defaults
        plan:     None takes the engine's
        scorer:   for strategy "swires": (question, texts) -> one score a text; runs on the engine's
                  thread
        has_events: keep events for `Handle.events()`
        on_event: called with each event (docs/events.md) on the engine's thread instead; it must
                  return at once and may cancel its question but not wait for any; what it raises
                  ends its question with a ListenerError
        deadline_seconds: from now; a question without an answer by then ends with a DeadlineError
        Errors: InvalidInputError, ImageError, and CapacityError for a question that can never fit.
        """
        question_ = self._intake.question(
            question,
            image,
            search=search,
            sampling=sampling,
            judge=judge,
            plan=plan,
            scorer=scorer,
            has_events=has_events,
            on_event=on_event,
            deadline_seconds=deadline_seconds,
        )
        self._loop.submit(question_)
        return question_.handle

    def answer_many(
        self,
        questions: Sequence[Any],
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
    ) -> list[Answer]:
        """Answer many questions as one stream of batches, in their order; see `iter_answers`."""
        return list(
            self.iter_answers(
                questions, search=search, sampling=sampling, judge=judge, plan=plan, scorer=scorer
            )
        )

    def iter_answers(
        self,
        questions: Sequence[Any],
        *,
        search: SearchParams | None = None,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
        plan: StagePlan | None = None,
        scorer: Scorer | None = None,
    ) -> Iterator[Answer]:
        """Yield the answers of many questions in their order, keeping the batch full.

        questions: a text, (text, image), or a dict of `submit`'s arguments, which override the
                   shared ones. The first error cancels the rest.
        """
        shared = {
            "search": search,
            "sampling": sampling,
            "judge": judge,
            "plan": plan,
            "scorer": scorer,
        }
        if isinstance(questions, (str, bytes, Mapping)):
            raise InvalidInputError(f"expected a list of questions, got {questions!r}")
        entries = [as_arguments(entry, shared) for entry in questions]
        handles: deque[Handle] = deque()
        try:
            for entry in entries:
                handles.append(self.submit(**{**shared, **entry}, has_events=False))
                if len(handles) >= 2 * self.max_branches:
                    answer = handles[0].result()
                    handles.popleft()
                    yield answer
            while handles:
                answer = handles[0].result()
                handles.popleft()
                yield answer
        finally:
            for handle in handles:
                handle.cancel()

    def generate(
        self, prompts: str | Sequence[str], sampling: SamplingParams | None = None
    ) -> list[GenerateOutput]:
        """Plain sampling of raw prompts, without template, stages or image: vLLM's `generate`.

        The begin-of-text id is put before a prompt that does not start with it.
        """
        built = [
            self._intake.prompt(prompt, sampling)
            for prompt in ([prompts] if isinstance(prompts, str) else prompts)
        ]
        for question in built:
            self._loop.submit(question)
        return [question.handle.result() for question in built]

    def judge(
        self,
        question: QuestionText,
        image: ImageSource | None,
        pairs: Sequence[tuple[str, str]],
        criterion: str,
        hints: Sequence[tuple[str, str]] = (),
        *,
        judge: JudgeParams | None = None,
    ) -> list[Verdict]:
        """Compare given texts as a search's judge would, all (first, second) pairs in one round.

        criterion: a stage's, or the plan's answer_criterion or sentence_criterion
        hints:     (name, text) of what the judge is told beside the question
        """
        comparison = Comparison(pairs, criterion, hints)
        question_ = comparison.attach(self._intake.session(question, image, judge=judge))
        self._loop.submit(question_)
        return question_.handle.result()

    def open(
        self,
        question: QuestionText,
        image: ImageSource | None = None,
        *,
        sampling: SamplingParams | None = None,
        judge: JudgeParams | None = None,
    ) -> BranchRef:
        """Open a session on a question: its root branch, prefilled, to fork, decode and commit."""
        question_ = self._intake.session(question, image, sampling=sampling, judge=judge)
        return Session(self._loop, question_, self.max_branches).trunk()

    def decode(
        self,
        branches: Sequence[BranchRef],
        until: str | Sequence[str] = (),
        sampling: SamplingParams | None = None,
    ) -> Sequence[BranchRef]:
        """Decode branches of one session as one batch, each until one of the strings `until`, an end
        of sequence or `max_tokens`; `text`, `inner` and `finish_reason` say what came of each."""
        session = _one_session(branches)
        goals = (until,) if isinstance(until, str) else tuple(until)
        stage = next((s for s in self.plan.stages if s.close_tag in goals), None)
        wrong = tuple(tag for tag in self.plan.close_tags if stage and tag not in goals)
        session.decode(
            branches,
            Until(goals=goals, wrong=wrong, stage=stage),
            sampling or session.question.sampling,
        )
        return branches

    def score(
        self,
        pairs: Sequence[tuple[BranchRef, BranchRef]],
        criterion: str,
        hints: Sequence[tuple[str, str]] = (),
    ) -> list[float]:
        """Judge pairs of one session in one round: the probability that each first is better."""
        session = _one_session([ref for pair in pairs for ref in pair])
        return session.score(pairs, criterion, hints)

    def follow(self) -> bool:
        """Under `tensor_parallel`, work for rank 0 until it closes its engine.

        Returns True then; on rank 0, and without `tensor_parallel`, False at once.
        """
        if self._follow is None or self._has_followers:
            return False
        self._follow()
        return True

    @property
    def default_sampling(self) -> SamplingParams:
        """What a question without sampling parameters uses: the checkpoint's generation defaults."""
        return self._intake.default_sampling()

    def stats(self) -> dict[str, int]:
        """Counts of blocks, image slots and questions of this moment."""
        return {
            **self._loop.num_questions(),
            **self.kv_cache.pool.stats(),
            "num_image_slots": self.image_slots.num_slots,
            "num_images_in_use": self.image_slots.num_in_use,
        }

    def close(self) -> None:
        """Cancel what runs and stop the background thread; the engine cannot be used afterwards."""
        self._loop.close()
        if self._has_followers:
            self._has_followers = False
            lead.send("stop")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checkpoint_plan(self) -> StagePlan:
        data = self.processor.stage_plan
        return LLAVA_COT_PLAN if data is None else StagePlan.from_dict(data)


def _one_session(branches: Sequence[BranchRef]) -> Session:
    sessions = {id(ref.session): ref.session for ref in branches}
    if len(sessions) != 1:
        raise InvalidInputError(
            f"expected branches of one session, got {len(branches)} of {len(sessions)}"
        )
    return next(iter(sessions.values()))
