"""This engine as a contender: tasks in, outcomes out, one or many at a time.

Reaches behind the engine's public face to put in token ids and a policy of its own; the loop, the
caches and the kernels run as they always do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stagebeam.benchmarks.baselines.outcome import Outcome
from stagebeam.benchmarks.baselines.task import Task, forced
from stagebeam.benchmarks.speed.recorder import Recorder, Span
from stagebeam.engine.engine import Engine
from stagebeam.engine.outputs import Answer, SearchResult
from stagebeam.engine.question import Question
from stagebeam.engine.search.policies import make_policy


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of tasks that ran together, and the passes that it took where those are known."""

    outcomes: list[Outcome]
    spans: list[Span] = field(default_factory=list)

    @property
    def host_seconds(self) -> float:
        """Inside the passes, but in no forward pass: arrays in, tokens out."""
        return sum(span.seconds - span.forward_seconds for span in self.spans)

    @property
    def decode_blocks(self) -> int:
        """KV blocks in use at once while branches were decoded, at the most."""
        return max((span.used_blocks for span in self.spans if span.kind == "decode"), default=0)


class Ours:
    """One engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def answer(self, task: Task) -> Outcome:
        """Answer one task."""
        return self.answer_together([task]).outcomes[0]

    def answer_together(self, tasks: Sequence[Task]) -> Recorded:
        """Answer tasks side by side, continuous batching as always."""
        with Recorder(self.engine) as recorder:
            questions = [self._question(task) for task in tasks]
            for question in questions:
                self.engine._loop.submit(question)
            answers = [question.handle.result() for question in questions]
        steps = [span for span in recorder.spans if span.kind == "decode"]
        return Recorded(
            outcomes=[self._outcome(answer, task, steps) for answer, task in zip(answers, tasks)],
            spans=recorder.spans,
        )

    def _question(self, task: Task) -> Question:
        question = self.engine._intake._build(
            task.question or "forced",
            list(task.prompt_ids),
            task.image,
            search=task.search,
            sampling=task.sampling,
            judge=task.judge,
            plan=task.plan,
            has_events=False,
        )
        question.asker = task.asker
        policy = make_policy(
            question.text, task.plan, task.search, task.sampling, task.judge, task.seed
        )
        question.policy = policy if task.lengths is None else forced(policy)
        return question

    def _outcome(self, answer: Answer, task: Task, steps: Sequence[Span]) -> Outcome:
        memory = self.engine.memory
        image_bytes = memory.image_slot_bytes if task.image is not None else 0
        winners = [stage.candidates[stage.winner].token_ids for stage in answer.stages]
        return Outcome(
            result=SearchResult(
                stages=answer.stages,
                text=answer.text,
                token_ids=tuple(token for ids in winners for token in ids),
                finish_reason=answer.finish_reason,
            ),
            usage=answer.usage,
            timings=answer.timings,
            step_seconds=[s.seconds / s.num_steps for s in steps for _ in range(s.num_steps)],
            peak_kv_bytes=answer.usage.peak_blocks * memory.block_bytes + image_bytes,
        )
