"""Sample requests: fork a prefix, reserve what the stage may need, decode, hand the branches back.

All or nothing: a request that does not fit changes nothing. Once started it never waits for blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stagebeam.engine.branch import Branch, branch_uid
from stagebeam.engine.decoding import Decoder, Track
from stagebeam.engine.events import CandidateFinished, StageStarted
from stagebeam.engine.memory.kv_cache import KVCache
from stagebeam.engine.question import Cache, Continue, LiveBranch, Question
from stagebeam.engine.scheduler import PrefillJob
from stagebeam.engine.search.requests import Sample, Until
from stagebeam.engine.step.batch import DecodeRow
from stagebeam.engine.tag_automaton import TagBank, TagSet


@dataclass(slots=True, kw_only=True)
class _Round:
    """One started request: its branches, and those that have finished."""

    question: Question
    request: Sample
    branches: list[LiveBranch]
    finished: dict[int, Branch] = field(default_factory=dict)


class Sampling:
    """Starts sample requests on the shared cache and answers them when every branch has ended."""

    def __init__(
        self,
        kv_cache: KVCache,
        decoder: Decoder,
        bank: TagBank,
        max_model_len: int,
        enqueue: Callable[[PrefillJob], None],
        answer: Callable[[Question, Any], None],
    ) -> None:
        self._kv_cache = kv_cache
        self._decoder = decoder
        self._bank = bank
        self._max_model_len = max_model_len
        self._enqueue = enqueue
        self._answer = answer

    def start(self, question: Question, request: Sample) -> bool:
        """Fork `request.prefix` into its branches and set them going; False where they do not fit."""
        prefix = question.branches[request.prefix.key]
        start = self._start_of(request.until)
        max_tokens = self._max_tokens(prefix, request)
        if max_tokens <= 0:
            branches = [question.fork(prefix, None) for _ in range(request.n)]
            self._end_at_once(question, request, branches)
            return True
        if not self._decoder.promise(question, request.n):
            return False
        jobs = []
        if prefix.seq is None:
            job = self._cache(question, prefix)
            if job is None:
                self._decoder.take_back(question, request.n)
                return False
            jobs.append(job)
        assert prefix.seq is not None
        seqs = self._kv_cache.pool.fork(prefix.seq, request.n, max_tokens)
        if seqs is None:
            if jobs:
                self._drop(prefix)
            self._decoder.take_back(question, request.n)
            return False
        branches = [question.fork(prefix, seq) for seq in seqs]
        self._go(question, request, branches, [max_tokens] * request.n, jobs, start)
        return True

    def continue_(self, question: Question, request: Continue) -> bool:
        """Decode branches in place; False where they do not fit, and nothing has changed."""
        sample = request.sample
        start = self._start_of(sample.until)
        branches = [question.branches[key] for key in request.keys]
        limits = [self._max_tokens(branch, sample) for branch in branches]
        live = [(branch, limit) for branch, limit in zip(branches, limits) if limit > 0]
        if not live:
            self._end_at_once(question, sample, branches)
            return True
        if not self._decoder.promise(question, len(live)):
            return False
        pool = self._kv_cache.pool
        jobs: list[tuple[LiveBranch, PrefillJob]] = []
        for branch, limit in live:
            if branch.seq is None:
                job = self._cache(question, branch)
                if job is not None:
                    jobs.append((branch, job))
            if branch.seq is None or not pool.reserve(branch.seq, limit):
                for cached, _ in jobs:
                    self._drop(cached)
                for other, _ in live:
                    if other.seq is not None:
                        pool.unreserve(other.seq)
                self._decoder.take_back(question, len(live))
                return False
        self._go(question, sample, branches, limits, [job for _, job in jobs], start)
        return True

    def cache(self, question: Question, request: Cache) -> bool:
        """Prefill a branch; False where it does not fit."""
        branch = question.branches[request.key]
        if branch.seq is None:
            job = self._cache(question, branch)
            if job is None:
                return False
            job.on_done = lambda _: self._answer(question, None)
            self._enqueue(job)
        else:
            self._answer(question, None)
        return True

    def _max_tokens(self, prefix: LiveBranch, request: Sample) -> int:
        return min(request.sampling.max_tokens, self._max_model_len - len(prefix.token_ids))

    def _cache(self, question: Question, branch: LiveBranch) -> PrefillJob | None:
        """Take blocks for all but the branch's last token; None where they do not fit."""
        num_tokens = len(branch.token_ids) - 1
        seq = self._kv_cache.pool.create(num_tokens)
        if seq is None:
            return None
        branch.seq = seq
        return PrefillJob(
            question=question,
            seq=seq,
            token_ids=branch.token_ids[:-1],
            start=0,
            slots=self._kv_cache.append(seq, num_tokens),
            image=question.image_ref,
            wants_hidden=False,
            on_done=lambda _: None,
            is_judging=False,
        )

    def _drop(self, branch: LiveBranch) -> None:
        assert branch.seq is not None
        self._kv_cache.pool.release([branch.seq])
        branch.seq = None

    def _go(
        self,
        question: Question,
        request: Sample,
        branches: Sequence[LiveBranch],
        limits: Sequence[int],
        jobs: Sequence[PrefillJob],
        start: tuple[TagSet | None, int],
    ) -> None:
        """Build the branches' rows; they join the batch once every job is done.

        limits: tokens each may still have; one without any ends at once, as "length"
        start:  what `_start_of` says
        """
        tags, goal_mask = start
        trunk_blocks = self._kv_cache.pool.num_shared_blocks(
            [b.seq for b, limit in zip(branches, limits) if limit > 0 and b.seq is not None]
        )
        group = self._decoder.new_group()
        round_ = _Round(question=question, request=request, branches=list(branches))
        tracks = []
        for i, (branch, limit) in enumerate(zip(branches, limits)):
            index = request.first_index + i
            if limit <= 0:
                round_.finished[i] = _without_room(branch, index)
                continue
            assert branch.seq is not None
            row = DecodeRow(
                seq=branch.seq,
                last_token=branch.token_ids[-1],
                position=len(branch.token_ids) - 1,
                seed=question.seed if request.sampling.seed is None else request.sampling.seed,
                uid=branch_uid(request.stage, index, request.round),
                sampling=request.sampling,
                max_tokens=limit,
                state=0 if tags is None else tags.start_state,
                goal_mask=goal_mask,
                tags=tags,
                group=group,
                trunk_blocks=trunk_blocks,
                image=question.image_ref,
            )
            tracks.append(
                Track(
                    question=question,
                    row=row,
                    on_finish=partial(self._on_finish, round_, i),
                    name=request.name,
                    round=request.round,
                    index=index,
                )
            )
        _tell_start(question, request, len(branches))
        num_left = len(jobs)

        def on_done(_: Any) -> None:
            nonlocal num_left
            num_left -= 1
            if num_left <= 0:
                self._decoder.join(tracks)

        for job in jobs:
            job.on_done = on_done
            self._enqueue(job)
        if not jobs:
            self._decoder.join(tracks)

    def _start_of(self, until: Until) -> tuple[TagSet | None, int]:
        """(tags, goal mask) of a fresh sample; one table serves all goals of a plan."""
        if not (until.goals or until.wrong):
            return None, 0
        tags = self._bank.register(sorted({*until.goals, *until.wrong}))
        return tags, tags.goal_mask(until.goals)

    def _on_finish(self, round_: _Round, i: int, track: Track) -> None:
        branch, question = round_.branches[i], round_.question
        branch.token_ids.extend(track.token_ids)
        question.usage.completion_tokens += len(track.token_ids)
        assert branch.seq is not None
        self._kv_cache.pool.unreserve(branch.seq)
        until, written = round_.request.until, self._decoder.bytes_of(track.token_ids)
        text = written.decode("utf-8", "replace")
        stage_text = (branch.carry + written).decode("utf-8", "replace")
        branch.carry = _after_goal(written, until) if track.finish_reason == "tag" else b""
        round_.finished[i] = Branch(
            key=branch.key,
            index=track.index,
            text=text,
            inner=until.stage.inner_text(stage_text) if until.stage else text,
            token_ids=tuple(track.token_ids),
            cumulative_logprob=track.cumulative_logprob,
            finish_reason=track.finish_reason,
        )
        if len(round_.finished) < len(round_.branches):
            return
        results = [round_.finished[i] for i in range(len(round_.branches))]
        question.usage.malformed_candidates += sum(not r.is_well_formed for r in results)
        count_blocks(question, self._kv_cache, ())
        # A session's caller may go on from any branch; a search never goes on from a malformed one.
        if question.policy is not None and any(result.is_well_formed for result in results):
            for branch, result in zip(round_.branches, results):
                if not result.is_well_formed:
                    self._drop(branch)  # were it wanted after all, its tokens would bring it back
        self._answer(question, results)

    def _end_at_once(
        self, question: Question, request: Sample, branches: Sequence[LiveBranch]
    ) -> None:
        """No room is left in the context: every branch ends as "length" without a token."""
        _tell_start(question, request, len(branches))
        results = []
        for i, branch in enumerate(branches):
            index = request.first_index + i
            question.handle.emit(
                CandidateFinished(
                    stage=request.name,
                    round=request.round,
                    candidate=index,
                    finish_reason="length",
                )
            )
            results.append(_without_room(branch, index))
        self._answer(question, results)


def _tell_start(question: Question, request: Sample, num_candidates: int) -> None:
    question.handle.emit(
        StageStarted(
            stage=request.name,
            round=request.round,
            first_candidate=request.first_index,
            num_candidates=num_candidates,
        )
    )


def _after_goal(written: bytes, until: Until) -> bytes:
    """What stands after the goal that ended `written`."""
    goals = [goal.encode() for goal in until.goals]
    return written[max(written.rfind(goal) + len(goal) for goal in goals if goal in written) :]


def _without_room(branch: LiveBranch, index: int) -> Branch:
    """What comes of a branch that fills the context already."""
    return Branch(
        key=branch.key,
        index=index,
        text="",
        inner="",
        token_ids=(),
        cumulative_logprob=0.0,
        finish_reason="length",
    )


def count_blocks(question: Question, kv_cache: KVCache, extra_seqs: Sequence[int]) -> None:
    """Record the question's blocks where they peak; `extra_seqs` are its judge prompts."""
    tables = [kv_cache.pool.block_table(s) for s in [*question.cached_seqs(), *extra_seqs]]
    usage = question.usage
    distinct = {int(block) for table in tables for block in table}
    usage.peak_blocks = max(usage.peak_blocks, len(distinct))
    usage.peak_blocks_unshared = max(usage.peak_blocks_unshared, sum(map(len, tables)))
