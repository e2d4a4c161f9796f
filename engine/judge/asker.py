"""From a judge request to token prompts, and from their results to verdicts.

Knows the words, the chat template and the tokenizer; not the model, the cache or the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagebeam.engine.branch import gate_uid, verdict_uid
from stagebeam.engine.judge.prompts import gate_text, pair_text
from stagebeam.engine.judge.verdict import (
    combine_orders,
    parse_gate,
    parse_verdict,
    verdict_tokens,
)
from stagebeam.engine.models.processor import Processor
from stagebeam.engine.params import JudgeParams
from stagebeam.engine.search.requests import Gate, Judge, Pair, Verdict
from stagebeam.engine.stages import JudgePrompts

_REVERSED = 1 << 23  # marks the second order's draws in a verdict's uid


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """One prompt of a judge round.

    token_ids:  up to the token where the two verdict sentences differ (mode "logits"), or up to
                the reply's start (mode "generate")
    choice_ids: the two tokens to compare there, or None where the verdict is generated
    image_position: of the image token, None for a text-only prompt
    """

    token_ids: tuple[int, ...]
    choice_ids: tuple[int, int] | None
    image_position: int | None
    uid: int


# A prompt's result: log-odds of its first choice, the generated text, or None where the prompt did
# not fit in the context.
PromptResult = float | str | None


class Asker:
    """Writes one question's judge prompts and reads their results."""

    def __init__(
        self,
        processor: Processor,
        prompts: JudgePrompts,
        params: JudgeParams,
        question: str,
        *,
        has_image: bool,
        add_bos: bool,
    ) -> None:
        self._processor = processor
        self._prompts = prompts
        self._params = params
        self._question = question
        self._has_image = has_image
        self._add_bos = add_bos

    def write(self, request: Judge | Gate) -> list[JudgePrompt]:
        """The prompts of a request: an item's orders side by side, items in the request's order.

        What the model wrote may spell a special token: it stays text.
        """
        plain = self._processor.without_specials
        hints = [(name, plain(text)) for name, text in request.hints]
        if isinstance(request, Gate):
            return [
                self._prompt(
                    gate_text(self._prompts, hints, plain(reasoning)),
                    self._prompts.gate_verdict,
                    self._prompts.gate_words,
                    gate_uid(request.stage, index, request.round),
                    has_image=False,
                )
                for reasoning, index in zip(request.reasonings, request.indices, strict=True)
            ]
        prompts = []
        for pair in request.pairs:
            one, other = plain(pair.first), plain(pair.second)
            orders = [(one, other, pair.index)]
            if self._params.has_both_orders:
                orders.append((other, one, pair.index | _REVERSED))
            for first, second, index in orders:
                text = pair_text(
                    self._prompts, request.criterion, self._question, hints, first, second
                )
                uid = verdict_uid(request.stage, index, request.round)
                prompts.append(
                    self._prompt(
                        text, self._prompts.verdict, ("1", "2"), uid, has_image=self._has_image
                    )
                )
        return prompts

    def check(self, *, has_gate: bool) -> None:
        """Refuse, before anything runs, words that this tokenizer cannot judge by logits."""
        self.write(Judge(pairs=(Pair(first="a", second="b"),), criterion=""))
        if has_gate:
            self.write(Gate(reasonings=("a",), indices=(0,)))

    def read(self, request: Judge | Gate, results: Sequence[PromptResult]) -> list[Any]:
        """The request's answer from its prompts' results: verdicts, or the gate's booleans."""
        if isinstance(request, Gate):
            return [self._passes(result) for result in results]
        if not self._params.has_both_orders:
            return [self._verdict(result) for result in results]
        return [
            _both_orders(self._verdict(ab), self._verdict(ba))
            for ab, ba in zip(results[::2], results[1::2], strict=True)
        ]

    def _prompt(
        self, text: str, sentence: str, choices: tuple[str, str], uid: int, *, has_image: bool
    ) -> JudgePrompt:
        content = [{"type": "text", "text": text}]
        if has_image:
            content.insert(0, {"type": "image"})
        rendered = self._processor.render([{"role": "user", "content": content}])

        def encode(prompt: str) -> list[int]:
            return self._processor.encode(prompt, add_bos=self._add_bos)

        choice_ids: tuple[int, int] | None = None
        if self._params.mode == "logits":
            token_ids, id_a, id_b = verdict_tokens(encode, rendered, sentence, choices)
            choice_ids = (id_a, id_b)
        else:
            token_ids = encode(rendered)
        position = self._processor.image_token_position(token_ids) if has_image else None
        return JudgePrompt(
            token_ids=tuple(token_ids), choice_ids=choice_ids, image_position=position, uid=uid
        )

    def _passes(self, result: PromptResult) -> bool:
        if isinstance(result, str):
            return parse_gate(result, self._prompts.gate_words)[0]
        return result is None or result > 0

    def _verdict(self, result: PromptResult) -> Verdict:
        if result is None:
            return Verdict(
                log_odds=0.0,
                is_malformed=True,
                text="(the judge's prompt did not fit in the context)",
            )
        if isinstance(result, str):
            choice, is_malformed = parse_verdict(result, self._prompts.verdict)
            log_odds = math.inf if choice == 1 else -math.inf
            return Verdict(log_odds=log_odds, is_malformed=is_malformed, text=result)
        return Verdict(log_odds=result)


def _both_orders(ab: Verdict, ba: Verdict) -> Verdict:
    """One verdict from a match asked in both orders; generated ones that disagree are a tie."""
    mean, is_disagreement = combine_orders(ab.log_odds, ba.log_odds)
    if is_disagreement and math.isinf(ab.log_odds):
        mean = 0.0
    texts = [verdict.text for verdict in (ab, ba) if verdict.text is not None]
    return Verdict(
        log_odds=mean,
        is_disagreement=is_disagreement,
        is_malformed=ab.is_malformed or ba.is_malformed,
        text="\n".join(texts) if texts else None,
    )
