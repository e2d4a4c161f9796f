"""The published searches on HF `generate`: batch 1, every call from scratch.

As LLaVA-CoT's release works (arXiv 2411.10440): each candidate and each verdict is one `generate`
call on the whole text so far, its image encoded and its prompt prefilled again; the stop test decodes
all new text after every token; two candidates popped at random meet, a sampled verdict picks one.
Two of its faults are mended, so that it runs at all: a candidate without its closing tag loses
instead of ending the program, and the stop test does not read the prompt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from stagebeam.benchmarks.baselines.hf_model import HFModel, Stamps, cache_bytes
from stagebeam.benchmarks.baselines.outcome import Outcome
from stagebeam.benchmarks.baselines.task import Task, ids_text
from stagebeam.engine.branch import FinishReason
from stagebeam.engine.judge.asker import JudgePrompt
from stagebeam.engine.judge.verdict import parse_gate, parse_verdict
from stagebeam.engine.outputs import Candidate, Match, SearchResult, StageResult, Timings, Usage
from stagebeam.engine.params import JudgeParams, SamplingParams
from stagebeam.engine.search.requests import Gate, Judge, Pair
from stagebeam.engine.stages import Stage

SENTENCE_END = "."
# The published judge: generated verdicts in one order, with the gate.
PUBLISHED_JUDGE = JudgeParams(mode="generate", both_orders=False, gate=True)


class PublishedHF:
    """Answers tasks one after another; `task.judge` must be a generating one.

    is_sampled: of calls alike (a stage's candidates, its matches) make and time only the first, and
                count it as often as it is made; for forced lengths, which make them alike
    """

    def __init__(self, model: HFModel, is_sampled: bool = False) -> None:
        self._model = model
        self._is_sampled = is_sampled

    @torch.inference_mode()
    def answer(self, task: Task) -> Outcome:
        """Search as published; `task.search` says which search and how wide."""
        assert task.lengths is not None or not self._is_sampled, "free candidates are not alike"
        torch.manual_seed(task.seed)
        return _Search(self._model, task, self._is_sampled).run()


class _Search:
    """One question's search: the text so far, and what it has cost."""

    def __init__(self, model: HFModel, task: Task, is_sampled: bool) -> None:
        self._model = model
        self._task = task
        self._is_sampled = is_sampled
        self._repeated_seconds = 0.0
        self._rng = random.Random(task.seed)
        self._trunk: list[int] = []
        self._text = ""
        self._stages: list[StageResult] = []
        self._usage = Usage(prompt_tokens=len(task.prompt_ids))
        self._timings = Timings()
        self._steps: list[float] = []
        self._peak_kv_bytes = 0
        self._began = time.perf_counter()

    def run(self) -> Outcome:
        model_clock = self._model.encode_clock
        model_clock.take()
        search = {
            "stage_beam": self._stage_search,
            "best_of_n": self._best_of_n,
            "sentence_beam": self._sentence_search,
            "single": self._best_of_n,
            "greedy": self._best_of_n,
        }[self._task.search.strategy]
        finish = search()
        self._timings.total = time.perf_counter() - self._began + self._repeated_seconds
        return Outcome(
            result=SearchResult(
                stages=tuple(self._stages),
                text=self._text,
                token_ids=tuple(self._trunk),
                finish_reason=finish,
            ),
            usage=self._usage,
            timings=self._timings,
            step_seconds=self._steps,
            peak_kv_bytes=self._peak_kv_bytes,
            repeated_seconds=self._repeated_seconds,
        )

    @contextmanager
    def _counted(self, times: int) -> Iterator[None]:
        """Book what the body takes as if it ran so often."""
        books = (self._timings, self._usage)
        before = [{f.name: getattr(book, f.name) for f in fields(book)} for book in books]
        began, repeated = time.perf_counter(), self._repeated_seconds
        num_steps = len(self._steps)
        yield
        self._steps += (times - 1) * self._steps[num_steps:]
        for book, old in zip(books, before):
            for name, value in old.items():
                now = getattr(book, name)
                if value is not None and now != value:
                    setattr(book, name, now + (times - 1) * (now - value))
        spent = time.perf_counter() - began + self._repeated_seconds - repeated
        self._repeated_seconds += (times - 1) * spent

    def _candidates(
        self, count: int, sampling: SamplingParams, goals: Sequence[str], stage: Stage | None = None
    ) -> list[Candidate]:
        """`count` candidates after the trunk, each by a call of its own."""
        if not self._is_sampled:
            return [self._sample(sampling, goals, stage) for _ in range(count)]
        with self._counted(count):
            first = self._sample(sampling, goals, stage)
        return [first] * count

    def _stage_search(self) -> FinishReason:
        finish: FinishReason = "tag"
        for stage in self._task.plan.stages:
            sampling = stage.sampling or self._task.sampling
            if stage.max_tokens is not None:
                sampling = replace(sampling, max_tokens=stage.max_tokens)
            width = stage.beam_size or self._task.search.beam_size
            candidates = self._candidates(width, sampling, (stage.close_tag,), stage)
            texts = {result.name: result.text for result in self._stages}
            finish = self._settle(
                stage.name,
                candidates,
                stage.criterion,
                tuple((name, texts[name]) for name in stage.hints),
                has_gate=stage.has_gate and self._task.judge.has_gate,
            )
            if finish != "tag":
                break
        return finish

    def _best_of_n(self) -> FinishReason:
        task, sampling = self._task, self._task.sampling
        is_one = task.search.strategy in ("single", "greedy")
        if task.search.strategy == "greedy":
            sampling = replace(sampling, temperature=0.0)
        goals = (task.plan.close_tags[-1],)
        count = 1 if is_one else task.search.beam_size
        answers = self._candidates(count, sampling, goals)
        return self._settle("answer", answers, task.plan.prompts.answer_criterion)

    def _sentence_search(self) -> FinishReason:
        task = self._task
        close_tag = task.plan.close_tags[-1]
        for number in range(1, task.search.max_rounds + 1):
            sentences = self._candidates(
                task.search.beam_size, task.sampling, (SENTENCE_END, close_tag)
            )
            finish = self._settle(
                f"sentence {number}",
                sentences,
                task.plan.prompts.sentence_criterion,
                (("answer so far", self._text),) if self._text else (),
            )
            if close_tag in self._text or finish != "tag":
                return finish
        return "length"

    def _sample(
        self, sampling: SamplingParams, goals: Sequence[str], stage: Stage | None = None
    ) -> Candidate:
        """One candidate after the trunk, by a `generate` call of its own."""
        task = self._task
        is_forced = task.lengths is not None
        stop = _StopOn(self._model, goals, len(task.prompt_ids) + len(self._trunk), is_forced)
        prompt = [*task.prompt_ids, *self._trunk]
        ids, stamps = self._generate(prompt, task.image_position, sampling, [stop])
        self._charge(stamps, "decode")
        self._usage.completion_tokens += len(ids)
        self._usage.decode_steps += len(ids)
        text = ids_text(ids) if is_forced else self._model.processor.decode(ids)
        finish: FinishReason = "length"
        if stop.is_met or is_forced:
            finish = "tag"
        elif ids and ids[-1] in self._model.spec.eos_ids:
            finish = "eos"
        self._usage.malformed_candidates += finish != "tag"
        return Candidate(
            text=text,
            inner=stage.inner_text(text) if stage and not is_forced else text,
            token_ids=tuple(ids),
            cumulative_logprob=None,
            finish_reason=finish,
        )

    def _settle(
        self,
        name: str,
        candidates: list[Candidate],
        criterion: str,
        hints: tuple[tuple[str, str], ...] = (),
        has_gate: bool = False,
    ) -> FinishReason:
        """Play the tournament and append the survivor to the trunk; how the survivor ended."""
        began, repeated = time.perf_counter(), self._repeated_seconds
        encoded = self._timings.image_encode
        entries = list(range(len(candidates)))
        matches: list[Match] = []
        while len(entries) > 1:
            num_left = len(entries) - 1
            a = entries.pop(self._rng.randrange(len(entries)))
            b = entries.pop(self._rng.randrange(len(entries)))
            with self._counted(num_left if self._is_sampled else 1):
                match = self._match(a, b, candidates, criterion, hints, has_gate)
            matches.append(match)
            entries = [match.winner] if self._is_sampled else [*entries, match.winner]
        judging = time.perf_counter() - began + self._repeated_seconds - repeated
        # Encoding the judge's image is counted as encoding.
        self._timings.judge += judging - (self._timings.image_encode - encoded)
        winner = candidates[entries[0]]
        self._trunk += winner.token_ids
        self._text += winner.text
        self._stages.append(
            StageResult(
                name=name, candidates=tuple(candidates), matches=tuple(matches), winner=entries[0]
            )
        )
        return winner.finish_reason

    def _match(
        self,
        a: int,
        b: int,
        candidates: Sequence[Candidate],
        criterion: str,
        hints: tuple[tuple[str, str], ...],
        has_gate: bool,
    ) -> Match:
        first, second = candidates[a], candidates[b]
        if "tag" not in (first.finish_reason, second.finish_reason):
            return Match(first=a, second=b, winner=min(a, b), probability=0.5, kind="malformed")
        if first.finish_reason != "tag" or second.finish_reason != "tag":
            is_first = first.finish_reason == "tag"
            return _decided(a, b, is_first, "malformed")
        if has_gate:
            if not self._passes(first, hints):
                return _decided(a, b, False, "gate")
            if not self._passes(second, hints):
                return _decided(a, b, True, "gate")
        pair = Pair(first=first.inner, second=second.inner)
        prompt = self._task.asker.write(Judge(pairs=(pair,), criterion=criterion, hints=hints))[0]
        text = self._reply(prompt)
        choice, is_malformed = parse_verdict(text, self._task.plan.prompts.verdict)
        self._usage.malformed_verdicts += is_malformed
        return Match(
            first=a,
            second=b,
            winner=a if choice == 1 else b,
            probability=float(choice == 1),
            is_malformed_verdict=is_malformed,
            verdict_text=text,
        )

    def _passes(self, candidate: Candidate, hints: tuple[tuple[str, str], ...]) -> bool:
        gate = Gate(reasonings=(candidate.inner,), indices=(0,), hints=hints)
        text = self._reply(self._task.asker.write(gate)[0])
        if self._task.lengths is not None:
            return True  # filler says neither word; a failed gate would save a match
        return parse_gate(text, self._task.plan.prompts.gate_words)[0]

    def _reply(self, prompt: JudgePrompt) -> str:
        sampling = self._task.judge.sampling or self._task.sampling
        ids, stamps = self._generate(
            prompt.token_ids, prompt.image_position, sampling, [], is_judging=True
        )
        self._charge(stamps, None)
        self._usage.judge_calls += 1
        self._usage.judge_prompt_tokens += len(prompt.token_ids)
        self._usage.judge_completion_tokens += len(ids)
        return self._model.processor.decode(ids)

    def _generate(
        self,
        prompt: Sequence[int],
        image_position: int | None,
        sampling: SamplingParams,
        stops: list[StoppingCriteria],
        is_judging: bool = False,
    ) -> tuple[list[int], Stamps]:
        model, image = self._model, self._task.image
        inputs: dict[str, Any] = {"input_ids": torch.tensor([list(prompt)])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if image is not None and image_position is not None:
            inputs |= model.image_inputs(image)
            inputs["cross_attention_mask"] = model.cross_mask(image, [image_position], len(prompt))
        room = model.spec.max_position_embeddings - len(prompt)
        stamps = Stamps()
        out = model.model.generate(
            **inputs,
            generation_config=model.generation_config(sampling, min(sampling.max_tokens, room)),
            stopping_criteria=[stamps, *stops],
        )
        self._peak_kv_bytes = max(self._peak_kv_bytes, cache_bytes([out.past_key_values]))
        return out.sequences[0, len(prompt) :].tolist(), stamps

    def _charge(self, stamps: Stamps, phase: str | None) -> None:
        """Book a call's time; a judge's call is timed as a whole, by `_settle`."""
        encode, images = self._model.encode_clock.take()
        self._timings.image_encode += encode
        self._usage.image_encodes += images
        self._usage.prefill_passes += 1
        if phase is None:
            return
        self._timings.prefill += stamps.times[0] - stamps.began - encode
        self._timings.decode += stamps.times[-1] - stamps.times[0]
        self._steps += stamps.steps
        if self._timings.time_to_first_token is None:
            self._timings.time_to_first_token = stamps.times[0] - self._began


class _StopOn(StoppingCriteria):
    """Decodes all new text after every token and looks for a stop string, as the release does."""

    def __init__(
        self, model: HFModel, goals: Sequence[str], num_prompt: int, is_forced: bool
    ) -> None:
        self._decode = model.processor.decode
        self._goals = goals
        self._num_prompt = num_prompt
        self._is_forced = is_forced
        self.is_met = False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        text = self._decode(input_ids[0, self._num_prompt :].tolist())
        self.is_met = any(goal in text for goal in self._goals) and not self._is_forced
        return torch.tensor([self.is_met])


def _decided(a: int, b: int, is_first: bool, kind: Any) -> Match:
    return Match(
        first=a, second=b, winner=a if is_first else b, probability=float(is_first), kind=kind
    )
