"""The strongest use of HF `generate` for these searches: batched, with caches kept.

The trunk's cache is kept over the stages and repeated for the candidates, which one `generate` call
samples side by side, each stopped on its own; the image is encoded once a question, and a judge
round is one padded batch whose last logits are compared. The policies are the engine's own, so
both play the same matches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria

from stagebeam.benchmarks.baselines.hf_model import HFModel, Stamps, cache_bytes
from stagebeam.benchmarks.baselines.outcome import Outcome
from stagebeam.benchmarks.baselines.task import Task, forced
from stagebeam.engine.branch import ROOT, Branch, FinishReason
from stagebeam.engine.judge.asker import JudgePrompt
from stagebeam.engine.outputs import SearchResult, Timings, Usage
from stagebeam.engine.search.policies import make_policy
from stagebeam.engine.search.requests import Commit, Gate, Judge, Sample
from stagebeam.engine.tag_automaton import token_bytes


class StrongHF:
    """Answers tasks one after another; `task.judge` must be by logits."""

    def __init__(self, model: HFModel) -> None:
        self._model = model
        self._pieces = token_bytes(model.processor.tokenizer)

    @torch.inference_mode()
    def answer(self, task: Task) -> Outcome:
        """Run the engine's policy for `task.search` on HF."""
        torch.manual_seed(task.seed)
        policy = make_policy(
            task.question, task.plan, task.search, task.sampling, task.judge, task.seed
        )
        search = _Search(self._model, task, self._pieces)
        if task.lengths is not None:
            policy = forced(policy)
        return search.run(policy)


class _Search:
    """One question: its trunk's cache, the rows sampled last, and what it has cost.

    The trunk's cache holds all its tokens but the last, as `generate` wants it.
    """

    def __init__(self, model: HFModel, task: Task, pieces: Sequence[bytes | None]) -> None:
        self._model, self._task, self._pieces = model, task, pieces
        self._trunk = list(task.prompt_ids)
        self._cache = self._new_cache()
        self._rows: DynamicCache | None = None
        self._keys: dict[int, int] = {ROOT.key: 0}
        self._new_ids: list[list[int]] = []
        self._next_key = 1
        self._image_layers: list[tuple[int, Tensor, Tensor]] = []
        self._usage = Usage(prompt_tokens=len(task.prompt_ids))
        self._timings = Timings()
        self._steps: list[float] = []
        self._peak_kv_bytes = 0
        self._decode_kv_bytes = 0
        self._began = time.perf_counter()

    def run(self, policy: Any) -> Outcome:
        self._prefill()
        result = None
        while True:
            try:
                request = policy.send(result)
            except StopIteration as stop:
                search_result: SearchResult = stop.value
                break
            result = None
            match request:
                case Sample():
                    result = self._sample(request)
                case Judge() | Gate():
                    result = self._judge(request)
                case Commit(branch=branch):
                    self._commit(branch)
        self._timings.total = time.perf_counter() - self._began
        return Outcome(
            result=search_result,
            usage=self._usage,
            timings=self._timings,
            step_seconds=self._steps,
            peak_kv_bytes=self._peak_kv_bytes,
            decode_kv_bytes=self._decode_kv_bytes,
        )

    def _prefill(self) -> None:
        """Encode the image and fill the trunk's cache, batch 1."""
        model, task = self._model, self._task
        model.encode_clock.take()
        began = time.perf_counter()
        inputs: dict[str, Any] = {"input_ids": torch.tensor([self._trunk[:-1]])}
        if task.image is not None and task.image_position is not None:
            inputs |= model.image_inputs(task.image)
            inputs["cross_attention_mask"] = model.cross_mask(
                task.image, [task.image_position], len(self._trunk) - 1
            )
        model.model(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        encode, images = model.encode_clock.take()
        self._usage.image_encodes += images
        self._usage.prefill_passes += 1
        self._timings.image_encode += encode
        self._timings.prefill += time.perf_counter() - began - encode
        for index in model.spec.cross_attention_layers if images else ():
            layer = self._cache.layers[index]
            self._image_layers.append((index, layer.keys, layer.values))

    def _sample(self, request: Sample) -> list[Branch]:
        """All candidates by one `generate` call on the repeated trunk."""
        model, task, count = self._model, self._task, request.n
        began = time.perf_counter()
        cache = self._copy(self._cache)
        cache.batch_repeat_interleave(count)
        ids = torch.tensor([self._trunk] * count)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if task.image is not None and task.image_position is not None:
            inputs["cross_attention_mask"] = model.cross_mask(
                task.image, [task.image_position] * count, len(self._trunk)
            )
        room = min(
            request.sampling.max_tokens, model.spec.max_position_embeddings - len(self._trunk)
        )
        stop = _StopRows(self._pieces, request.until.goals, request.until.wrong, len(self._trunk))
        stamps = Stamps()
        out = model.model.generate(
            **inputs,
            past_key_values=cache,
            generation_config=model.generation_config(request.sampling, room),
            stopping_criteria=[stamps, stop],
        )
        self._rows = out.past_key_values
        held = cache_bytes([self._cache, out.past_key_values])
        self._decode_kv_bytes = max(self._decode_kv_bytes, held)
        self._peak_kv_bytes = max(self._peak_kv_bytes, held)
        branches = self._branches(request, out.sequences[:, len(self._trunk) :].tolist(), stop)
        if self._timings.time_to_first_token is None:
            self._timings.time_to_first_token = stamps.times[0] - self._began
        self._steps += [stamps.times[0] - stamps.began, *stamps.steps]
        self._usage.decode_steps += len(stamps.times)
        self._timings.decode += time.perf_counter() - began
        return branches

    def _branches(self, request: Sample, rows: list[list[int]], stop: _StopRows) -> list[Branch]:
        stage = request.until.stage
        branches = []
        self._keys.clear()
        self._new_ids = []
        for i, row in enumerate(rows):
            ids, finish = self._end_of(row, stop.ends.get(i), request.sampling.ignore_eos)
            text = b"".join(self._pieces[t] or b"" for t in ids).decode("utf-8", "replace")
            self._usage.completion_tokens += len(ids)
            self._new_ids.append(ids)
            self._keys[self._next_key] = i
            branches.append(
                Branch(
                    key=self._next_key,
                    index=request.first_index + i,
                    text=text,
                    inner=stage.inner_text(text) if stage else text,
                    token_ids=tuple(ids),
                    cumulative_logprob=0.0,
                    finish_reason=finish,
                )
            )
            self._next_key += 1
        if self._task.lengths is None:
            self._usage.malformed_candidates += sum(not b.is_well_formed for b in branches)
        return branches

    def _end_of(
        self, row: list[int], end: tuple[int, FinishReason] | None, ignore_eos: bool
    ) -> tuple[list[int], FinishReason]:
        """A row's own tokens, the padding after its end cut off, and how it ended."""
        if not ignore_eos:
            for i, token in enumerate(row[: end[0] if end else None]):
                if token in self._model.spec.eos_ids:
                    return row[: i + 1], "eos"
        return (row, "length") if end is None else (row[: end[0]], end[1])

    def _commit(self, branch: Branch) -> None:
        """Keep the winner's row of the cache, cut to its own tokens."""
        began = time.perf_counter()
        assert self._rows is not None
        row = self._keys[branch.key]
        self._trunk += self._new_ids[row]
        cross = set(self._model.spec.cross_attention_layers)
        for i, (layer, kept) in enumerate(zip(self._rows.layers, self._cache.layers)):
            if i not in cross:
                length = len(self._trunk) - 1
                kept.keys = layer.keys[row : row + 1, :, :length].clone()
                kept.values = layer.values[row : row + 1, :, :length].clone()
        self._rows = None
        self._timings.decode += time.perf_counter() - began

    def _judge(self, request: Judge | Gate) -> list[Any]:
        """All prompts of the round in one left-padded batch; the last logits are compared."""
        began = time.perf_counter()
        prompts = self._task.asker.write(request)
        results = self._compare(prompts)
        self._usage.judge_rounds += 1
        self._usage.judge_calls += len(prompts)
        self._usage.judge_prompt_tokens += sum(len(prompt.token_ids) for prompt in prompts)
        answer = self._task.asker.read(request, results)
        self._timings.judge += time.perf_counter() - began
        return answer

    def _compare(self, prompts: Sequence[JudgePrompt]) -> list[float | str | None]:
        model, task = self._model, self._task
        width = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask[row, width - len(prompt.token_ids) :] = 1
        inputs: dict[str, Any] = {}
        cache = self._new_cache()
        places = [p.image_position for p in prompts]
        if task.image is not None and None not in places:
            positions = [
                width - len(p.token_ids) + place for p, place in zip(prompts, places) if place
            ]
            inputs["cross_attention_mask"] = model.cross_mask(task.image, positions, width)
            for index, keys, values in self._image_layers:
                shape = (len(prompts), -1, -1, -1)
                cache.update(keys.expand(shape), values.expand(shape), index)
        logits = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        ).logits[:, 0]
        held = [self._cache, cache, *([self._rows] if self._rows is not None else [])]
        self._peak_kv_bytes = max(self._peak_kv_bytes, cache_bytes(held))
        log_odds: list[float | str | None] = []
        for row, prompt in zip(logits, prompts):
            assert prompt.choice_ids is not None, "judging by logits"
            a, b = prompt.choice_ids
            log_odds.append(float(row[a] - row[b]))
        return log_odds

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self._model.model.config)

    def _copy(self, cache: DynamicCache) -> DynamicCache:
        copy = self._new_cache()
        for i, layer in enumerate(cache.layers):
            copy.update(layer.keys, layer.values, i)
        return copy


class _StopRows(StoppingCriteria):
    """Ends each row at its own stop string, looking at the tail of its bytes only."""

    def __init__(
        self,
        pieces: Sequence[bytes | None],
        goals: Sequence[str],
        wrong: Sequence[str],
        num_prompt: int,
    ) -> None:
        self._pieces = pieces
        self._goals = [goal.encode() for goal in goals]
        self._wrong = [tag.encode() for tag in wrong]
        self._longest = max((len(s) for s in [*self._goals, *self._wrong]), default=0)
        self._num_prompt = num_prompt
        self._tails: dict[int, bytes] = {}
        self.ends: dict[int, tuple[int, FinishReason]] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        count = input_ids.shape[1] - self._num_prompt
        if self._longest:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if row not in self.ends:
                    self._look(row, self._pieces[token] or b"", count)
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool)
        done[list(self.ends)] = True
        return done

    def _look(self, row: int, piece: bytes, count: int) -> None:
        tail = self._tails.get(row, b"") + piece
        if any(goal in tail for goal in self._goals):
            self.ends[row] = count, "tag"
        elif any(tag in tail for tag in self._wrong):
            self.ends[row] = count, "wrong_tag"
        self._tails[row] = tail[-self._longest :]
