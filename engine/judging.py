"""Judge and gate requests: prompts that share their beginnings, prefilled in as few passes as fit.

Prompts are taken in lexicographic order, so that each shares most with the one before it; it forks
that one, or one of the tournament's earlier rounds, at a block boundary and prefills only the rest. A
round that does not fit at once goes in waves. Mode "logits" reads one hidden state a prompt; mode
"generate" decodes a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stagebeam.engine.decoding import Decoder, Track
from stagebeam.engine.judge.asker import JudgePrompt, PromptResult
from stagebeam.engine.memory.kept_prompts import KeptPrompt, KeptPrompts, shared_tokens
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.params import SamplingParams
from stagebeam.engine.question import Question
from stagebeam.engine.sampling import count_blocks
from stagebeam.engine.scheduler import PrefillJob
from stagebeam.engine.search.requests import Gate, Judge
from stagebeam.engine.step.batch import DecodeRow, ImageRef


@dataclass(slots=True, kw_only=True)
class JudgeRound:
    """A request's prompts and the results so far.

    order: indices of the prompts not yet started, lexicographic by tokens
    jobs:  of the wave in flight; each holds a pool sequence
    """

    question: Question
    request: Judge | Gate
    prompts: list[JudgePrompt]
    results: dict[int, PromptResult] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    jobs: dict[int, PrefillJob] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)

    @property
    def seqs(self) -> list[int]:
        return [job.seq for job in self.jobs.values()]


class Judging:
    """Starts judge rounds on the shared cache and answers them when every prompt has a result."""

    def __init__(
        self,
        kv_cache: KVCache,
        decoder: Decoder,
        max_model_len: int,
        enqueue: Callable[[PrefillJob], None],
        compare: Callable[[Tensor, Sequence[tuple[int, int]]], list[float]],
        answer: Callable[[Question, Any], None],
        pause: Callable[[Question], None],
    ) -> None:
        self._kv_cache = kv_cache
        self._decoder = decoder
        self._max_model_len = max_model_len
        self._enqueue = enqueue
        self._compare = compare
        self._answer = answer
        self._pause = pause
        self._rounds: dict[int, JudgeRound] = {}
        self._kept = KeptPrompts(kv_cache.pool)

    def start(self, question: Question, request: Judge | Gate) -> bool:
        """Start the request, or the next wave of it; False where not one more prompt fits."""
        round_ = self._rounds.get(question.id)
        if round_ is None:
            round_ = self._open(question, request)
        if not round_.order:
            self._finish(round_)
            return True
        return self._start_wave(round_)

    def give_up(self, question: Question) -> None:
        """The next prompt fits in no way: it has no result, the round goes on."""
        round_ = self._rounds[question.id]
        round_.results[round_.order.pop(0)] = None

    def drop(self, question: Question) -> None:
        """Forget a question's round and free its sequences."""
        self._kept.drop(question.id)
        round_ = self._rounds.pop(question.id, None)
        if round_ is not None:
            self._free_wave(round_)

    def make_room(self) -> bool:
        """Free the blocks of rounds that are over; False where there are none."""
        return self._kept.drop_all()

    def _open(self, question: Question, request: Judge | Gate) -> JudgeRound:
        prompts = question.asker.write(request)
        round_ = JudgeRound(question=question, request=request, prompts=prompts)
        room = self._max_model_len - (0 if _is_by_logits(prompts) else 1)
        for i, prompt in enumerate(prompts):
            if len(prompt.token_ids) > room:
                round_.results[i] = None
            else:
                round_.order.append(i)
        round_.order.sort(key=lambda i: (prompts[i].token_ids, i))
        self._rounds[question.id] = round_
        question.usage.judge_rounds += 1
        question.usage.judge_calls += len(prompts)
        return round_

    def _start_wave(self, round_: JudgeRound) -> bool:
        previous: PrefillJob | None = None
        while round_.order:
            i = round_.order[0]
            job = self._admit(round_, i, previous)
            if job is None:
                break
            round_.order.pop(0)
            round_.jobs[i] = previous = job
        if not round_.jobs:
            return False
        question = round_.question
        count_blocks(question, self._kv_cache, [*self._kept.seqs(question.id), *round_.seqs])
        for i, job in round_.jobs.items():
            job.on_done = partial(self._on_prefilled, round_, i)
            question.usage.judge_prompt_tokens += job.end - job.start
        for job in list(round_.jobs.values()):
            self._enqueue(job)
        return True

    def _admit(self, round_: JudgeRound, i: int, previous: PrefillJob | None) -> PrefillJob | None:
        """Take blocks (and, to generate, a row) for prompt `i`; None where they do not fit."""
        prompt, pool = round_.prompts[i], self._kv_cache.pool
        is_by_logits = prompt.choice_ids is not None
        tokens = prompt.token_ids if is_by_logits else prompt.token_ids[:-1]
        room = 0 if is_by_logits else self._reply_tokens(round_.question, prompt)
        if not is_by_logits and not self._decoder.promise(round_.question, 1):
            return None
        shared, source = self._kept.longest_start(round_.question.id, tokens, prompt.image_position)
        after = None
        if previous is not None:
            in_pass = shared_tokens(previous.token_ids, tokens, pool.block_size)
            if in_pass > shared:
                shared, source, after = in_pass, previous.seq, previous
        if shared:
            seq = pool.snapshot(source)
            pool.truncate(seq, shared)
        else:
            created = pool.create(0)
            assert created is not None, "an empty sequence takes no block"
            seq = created
        if not pool.reserve(seq, len(tokens) - shared + room):
            pool.release([seq])
            if not is_by_logits:
                self._decoder.take_back(round_.question, 1)
            return None
        return PrefillJob(
            question=round_.question,
            seq=seq,
            token_ids=tokens,
            start=shared,
            slots=self._kv_cache.append(seq, len(tokens) - shared),
            image=self._image(round_.question, prompt),
            wants_hidden=is_by_logits,
            on_done=lambda _: None,
            is_judging=True,
            after=after,
        )

    def _image(self, question: Question, prompt: JudgePrompt) -> ImageRef | None:
        if prompt.image_position is None or question.image_ref is None:
            return None
        return ImageRef(
            slot=question.image_ref.slot,
            position=prompt.image_position,
            valid_tokens=question.image_ref.valid_tokens,
        )

    def _sampling(self, question: Question) -> SamplingParams:
        return question.judge.sampling or question.sampling

    def _reply_tokens(self, question: Question, prompt: JudgePrompt) -> int:
        room = self._max_model_len - len(prompt.token_ids)
        return min(self._sampling(question).max_tokens, room)

    def _on_prefilled(self, round_: JudgeRound, i: int, hidden: Tensor | None) -> None:
        if hidden is None:
            self._decode_reply(round_, i)
            return
        round_.hidden[i] = hidden
        if len(round_.hidden) < len(round_.jobs):
            return
        indices = sorted(round_.hidden)
        pairs = []
        for index in indices:
            choice_ids = round_.prompts[index].choice_ids
            assert choice_ids is not None
            pairs.append(choice_ids)
        stacked = torch.stack([round_.hidden[index] for index in indices])
        round_.results.update(zip(indices, self._compare(stacked, pairs), strict=True))
        round_.hidden.clear()
        self._end_wave(round_)

    def _decode_reply(self, round_: JudgeRound, i: int) -> None:
        prompt, question = round_.prompts[i], round_.question
        seq = round_.jobs[i].seq
        sampling = self._sampling(question)
        row = DecodeRow(
            seq=seq,
            last_token=prompt.token_ids[-1],
            position=len(prompt.token_ids) - 1,
            seed=question.seed,
            uid=prompt.uid,
            sampling=sampling,
            max_tokens=self._reply_tokens(question, prompt),
            state=0,
            goal_mask=0,
            group=self._decoder.new_group(),
            trunk_blocks=0,
            image=self._image(question, prompt),
        )
        track = Track(
            question=question,
            row=row,
            on_finish=partial(self._on_reply, round_, i),
            name=None,
            index=i,
            is_judging=True,
        )
        self._decoder.join([track])

    def _on_reply(self, round_: JudgeRound, i: int, track: Track) -> None:
        round_.question.usage.judge_completion_tokens += len(track.token_ids)
        round_.results[i] = self._decoder.text(track.token_ids)
        if all(index in round_.results for index in round_.jobs):
            self._end_wave(round_)

    def _end_wave(self, round_: JudgeRound) -> None:
        if round_.order:
            self._free_wave(round_)
            self._pause(round_.question)
        else:
            self._finish(round_)

    def _free_wave(self, round_: JudgeRound) -> None:
        self._kv_cache.pool.release(round_.seqs)
        round_.jobs.clear()

    def _finish(self, round_: JudgeRound) -> None:
        """Hand the results on; the prompts stay as long as the question goes on judging."""
        question = round_.question
        del self._rounds[question.id]
        self._kept.keep(
            question.id,
            [
                KeptPrompt(job.token_ids, round_.prompts[i].image_position, job.seq)
                for i, job in round_.jobs.items()
            ],
        )
        round_.jobs.clear()  # they call the round when done: a circle that would hold the question
        results = [round_.results[i] for i in range(len(round_.prompts))]
        self._answer(question, question.asker.read(round_.request, results))
        if not isinstance(question.request, (Judge, Gate)):
            self._kept.drop(question.id)


def _is_by_logits(prompts: Sequence[JudgePrompt]) -> bool:
    return all(prompt.choice_ids is not None for prompt in prompts)
