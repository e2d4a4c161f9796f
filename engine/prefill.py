"""The prefill queue of all questions: whole prompts, dropped trunks and judge prompts, in chunks."""

from __future__ import annotations

from torch import Tensor

from stagebeam.engine.question import Question
from stagebeam.engine.scheduler import PrefillJob, select_chunks
from stagebeam.engine.step.batch import PrefillChunk
from stagebeam.engine.step.runner import ModelRunner

FinishedJob = tuple[PrefillJob, Tensor | None]  # with its last hidden state [hidden_size] if wanted


class PrefillQueue:
    """Jobs in arrival order; a pass takes at most `max_tokens` tokens of them."""

    def __init__(self, runner: ModelRunner, chunk_size: int, max_tokens: int) -> None:
        self._runner = runner
        self._chunk_size = chunk_size
        self._max_tokens = max_tokens
        self._jobs: list[PrefillJob] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: PrefillJob) -> None:
        """Queue a job; one without tokens is done at once."""
        if job.start == job.end:
            job.on_done(None)
        else:
            self._jobs.append(job)

    def drop(self, question: Question) -> None:
        """Forget a question's jobs."""
        self._jobs = [job for job in self._jobs if job.question is not question]

    def run_pass(self) -> tuple[list[PrefillJob], list[FinishedJob]]:
        """One forward pass; returns the jobs that had a part in it, and those of them that are
        finished, for the caller to `on_done`."""
        chosen = select_chunks(self._jobs, self._chunk_size, self._max_tokens)
        chunks = []
        for job, end in chosen:
            chunks.append(
                PrefillChunk(
                    seq=job.seq,
                    token_ids=job.token_ids[job.next : end],
                    start=job.next,
                    slots=job.slots[job.next - job.start : end - job.start],
                    image=job.image,
                    wants_hidden=job.wants_hidden and end == job.end,
                )
            )
        hidden = iter(self._runner.prefill(chunks))
        done: list[FinishedJob] = []
        for (job, end), chunk in zip(chosen, chunks):
            job.next = end
            if end == job.end:
                done.append((job, next(hidden) if chunk.wants_hidden else None))
        finished = {id(job) for job, _ in done}
        self._jobs = [job for job in self._jobs if id(job) not in finished]
        return [job for job, _ in chosen], done
