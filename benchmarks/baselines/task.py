"""One question as every contender gets it: the same token ids, image, stage plan and judge prompts.

A free task is an ordinary question. A forced one fixes every length, for speed: candidates run to
their stage's number of tokens and count as well formed, and the judge's prompts are built from ids,
so that all contenders do the same number of tokens. A candidate's text is then its ids in decimal.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from stagebeam.engine.branch import Branch, gate_uid, verdict_uid
from stagebeam.engine.judge.asker import Asker, JudgePrompt
from stagebeam.engine.messages import as_messages
from stagebeam.engine.models.images import ImageSource
from stagebeam.engine.models.processor import PreparedImage, Processor
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams
from stagebeam.engine.search.requests import Gate, Judge, Policy, Sample, Until
from stagebeam.engine.stages import StagePlan

IMAGE_PLACE = 4  # of the image token in a forced prompt: after the turn's header
SENTENCE_TOKENS = 20  # a forced sentence's length
_image_number = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Forced numbers of tokens.

    stages: each stage's candidates, in the plan's order
    judge_head, judge_tail: of a judge's prompt around the hints and the two candidates
    verdict: of a generated verdict or gate
    """

    prompt: int = 60
    stages: tuple[int, ...] = (60, 110, 170, 20)
    judge_head: int = 150
    judge_tail: int = 40
    verdict: int = 60

    @property
    def answer(self) -> int:
        """Tokens of a whole answer."""
        return sum(self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question, ready to be answered; `lengths` is None where it runs freely.

    image_position: of the image token in `prompt_ids`; None for a text question
    """

    question: str
    prompt_ids: tuple[int, ...]
    image: PreparedImage | None
    image_position: int | None
    plan: StagePlan
    search: SearchParams
    sampling: SamplingParams
    judge: JudgeParams
    asker: Asker
    lengths: Lengths | None = None

    @property
    def seed(self) -> int:
        assert self.sampling.seed is not None, "a task's seed is fixed"
        return self.sampling.seed


def free_task(
    processor: Processor,
    question: str,
    image: ImageSource | None,
    *,
    plan: StagePlan,
    search: SearchParams,
    sampling: SamplingParams,
    judge: JudgeParams,
    add_bos: bool,
) -> Task:
    """An ordinary question, as `Engine.answer` would put it."""
    rendered = processor.render(as_messages(question, image is not None))
    prompt_ids = processor.encode(rendered, add_bos=add_bos)
    return Task(
        question=question,
        prompt_ids=tuple(prompt_ids),
        image=_fresh_image(processor, image),
        image_position=processor.image_token_position(prompt_ids),
        plan=plan,
        search=search,
        sampling=sampling,
        judge=judge,
        asker=Asker(
            processor, plan.prompts, judge, question, has_image=image is not None, add_bos=add_bos
        ),
    )


def forced_task(
    processor: Processor,
    image: ImageSource | None,
    *,
    lengths: Lengths,
    plan: StagePlan,
    search: SearchParams,
    sampling: SamplingParams,
    judge: JudgeParams,
    image_id: int | None,
) -> Task:
    """A question whose every length is given; its words are drawn from the tokenizer's plain ids.

    image_id: the image token's, as the checkpoint has it
    """
    if len(lengths.stages) != len(plan.stages):
        raise ValueError(
            f"forced lengths {lengths.stages} need one number a stage of the plan, which has "
            f"{len(plan.stages)}"
        )
    stages = tuple(
        replace(stage, max_tokens=tokens, beam_size=None, sampling=None)
        for stage, tokens in zip(plan.stages, lengths.stages)
    )
    words = _Words(processor, sampling.seed or 0, None if image is None else image_id)
    is_by_sentence = search.strategy == "sentence_beam"
    return Task(
        question="",
        prompt_ids=words.with_image(lengths.prompt),
        image=_fresh_image(processor, image),
        image_position=None if image is None else IMAGE_PLACE,
        plan=replace(plan, stages=stages),
        search=replace(search, max_rounds=-(-lengths.answer // SENTENCE_TOKENS)),
        sampling=replace(
            sampling,
            max_tokens=SENTENCE_TOKENS if is_by_sentence else lengths.answer,
            ignore_eos=True,
        ),
        judge=replace(
            judge, sampling=replace(sampling, max_tokens=lengths.verdict, ignore_eos=True)
        ),
        asker=_FixedAsker(processor, plan, judge, words, lengths, has_image=image is not None),
        lengths=lengths,
    )


def _fresh_image(processor: Processor, image: ImageSource | None) -> PreparedImage | None:
    """The image as one that no task before has shown, so that nobody has it encoded already."""
    if image is None:
        return None
    prepared = processor.preprocess(image)
    return replace(prepared, key=prepared.key + next(_image_number).to_bytes(8, "little"))


def ids_text(token_ids: Sequence[int]) -> str:
    """Token ids as a text that says them exactly; the text of a forced candidate."""
    return "".join(f"{token_id} " for token_id in token_ids)


def forced(policy: Policy) -> Policy:
    """Run a policy's samples to their length, no stop string ending them, and call that well formed."""
    result = None
    while True:
        try:
            request = policy.send(result)
        except StopIteration as stop:
            return stop.value
        if isinstance(request, Sample):
            branches: list[Branch] = yield replace(request, until=Until())
            result = [_well_formed(branch) for branch in branches]
        else:
            result = yield request


def _well_formed(branch: Branch) -> Branch:
    """The branch as a candidate that differs from its siblings, so that every match is judged."""
    text = ids_text(branch.token_ids) + " " * branch.index
    return replace(branch, text=text, inner=text, finish_reason="tag")


class _Words:
    """Filler ids, the same for the same seed."""

    def __init__(self, processor: Processor, seed: int, image_id: int | None) -> None:
        tokenizer = processor.tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self._plain = [i for i in range(len(tokenizer)) if i not in special]
        self._rng = random.Random(seed)
        self._image_id = image_id

    def plain(self, number: int) -> tuple[int, ...]:
        return tuple(self._rng.choices(self._plain, k=number))

    def with_image(self, number: int) -> tuple[int, ...]:
        """Filler with the image token in its place, where there is an image."""
        ids = list(self.plain(number))
        if self._image_id is not None:
            ids[IMAGE_PLACE] = self._image_id
        return tuple(ids)


class _FixedAsker(Asker):
    """Builds judge prompts of fixed lengths around candidates whose texts are their ids."""

    def __init__(
        self,
        processor: Processor,
        plan: StagePlan,
        params: JudgeParams,
        words: _Words,
        lengths: Lengths,
        *,
        has_image: bool,
    ) -> None:
        super().__init__(processor, plan.prompts, params, "", has_image=has_image, add_bos=False)
        self._has_both_orders = params.has_both_orders
        self._is_by_logits = params.mode == "logits"
        self._image_position = IMAGE_PLACE if has_image else None
        criteria = [stage.criterion for stage in plan.stages]
        criteria += [plan.prompts.answer_criterion, plan.prompts.sentence_criterion]
        self._heads = {text: words.with_image(lengths.judge_head) for text in criteria}
        self._gate_head = words.plain(lengths.judge_head)
        self._tail = words.plain(lengths.judge_tail)
        choices = words.plain(64)
        self._choice_ids = (min(choices), max(choices))

    def check(self, *, has_gate: bool) -> None:
        """Nothing to refuse: the words are made up."""

    def write(self, request: Judge | Gate) -> list[JudgePrompt]:
        """The prompts of a request, in the order that `Asker.write` gives them."""
        hints = [i for _, text in request.hints for i in _ids(text)]
        if isinstance(request, Gate):
            return [
                self._made(
                    [*self._gate_head, *hints, *_ids(reasoning)],
                    None,
                    gate_uid(request.stage, i, request.round),
                )
                for reasoning, i in zip(request.reasonings, request.indices, strict=True)
            ]
        head = self._heads[request.criterion]
        prompts = []
        for pair in request.pairs:
            first, second = _ids(pair.first), _ids(pair.second)
            orders = [(first, second), (second, first)][: 2 if self._has_both_orders else 1]
            for number, (one, other) in enumerate(orders):
                uid = verdict_uid(request.stage, pair.index | number << 23, request.round)
                prompts.append(self._made([*head, *hints, *one, *other], self._image_position, uid))
        return prompts

    def _made(self, ids: list[int], image_position: int | None, uid: int) -> JudgePrompt:
        return JudgePrompt(
            token_ids=(*ids, *self._tail),
            choice_ids=self._choice_ids if self._is_by_logits else None,
            image_position=image_position,
            uid=uid,
        )


def _ids(text: str) -> list[int]:
    return [int(word) for word in text.split()]
