"""Conversations to token ids with their label mask, by the tokenizer's own chat template.

Loss falls on the assistant's text and its end-of-turn token, nothing else. Each turn's prompt and
reply are tokenised apart, as they are when a prompt is encoded and a reply generated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stagebeam.engine.errors import InvalidInputError
from stagebeam.training.examples import Example, ImageInputs

Message = Mapping[str, Any]  # HF's form: {"role": ..., "content": str | list of parts}


class ChatEncoder:
    """Encodes conversations for one tokenizer.

    add_bos: put one more BOS before what the template writes; None does so only where the template
             writes none. `self.add_bos` holds the answer, for stagebeam.json
    """

    def __init__(self, tokenizer: Any, *, add_bos: bool | None = None) -> None:
        if getattr(tokenizer, "chat_template", None) is None:
            raise InvalidInputError(
                "the tokenizer has no chat template: put chat_template.jinja beside tokenizer.json"
            )
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids) | _added_special_ids(tokenizer)
        texts = sorted((tokenizer.convert_ids_to_tokens(i) for i in self._special_ids), key=len)
        self._special_text = re.compile("|".join(re.escape(t) for t in reversed(texts)) or r"(?!)")
        if add_bos is None:
            bos = tokenizer.bos_token
            prompt = self._render([{"role": "user", "content": "a"}], add_generation_prompt=True)
            add_bos = bos is not None and not prompt.startswith(bos)
        if add_bos and tokenizer.bos_token_id is None:
            raise InvalidInputError("add_bos is on but the tokenizer has no BOS token")
        self.add_bos = add_bos

    def special_token_in(self, text: str) -> str | None:
        """The first special token spelled out in `text`, which would break the masking, or None."""
        match = self._special_text.search(text)
        return match.group() if match else None

    def encode(self, messages: Sequence[Message], image: ImageInputs | None = None) -> Example:
        """Tokenise a conversation that ends with an assistant turn.

        Raises InvalidInputError where the template does not extend a conversation by appending.
        """
        ids: list[int] = [self._tokenizer.bos_token_id] if self.add_bos else []
        labelled = [False] * len(ids)
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], add_generation_prompt=True)
            whole = self._render(messages[: index + 1], add_generation_prompt=False)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise InvalidInputError(
                    f"the chat template rewrites earlier turns when turn {index} is added, so its "
                    "labels cannot be told apart; use a template that only appends"
                )
            prompt_ids = self._tokenize(prompt[len(done) :])
            reply_ids = self._tokenize(whole[len(prompt) :])
            end = next((i for i, t in enumerate(reply_ids) if t in self._special_ids), None)
            if end is None:
                raise InvalidInputError(
                    "the chat template ends no assistant turn by a special token"
                )
            ids += prompt_ids + reply_ids
            labelled += [False] * len(prompt_ids)
            labelled += [position <= end for position in range(len(reply_ids))]
            done = whole
        if not any(labelled):
            raise InvalidInputError("a conversation needs an assistant turn, got none")
        return Example(
            input_ids=torch.tensor(ids, dtype=torch.int64),
            labelled=torch.tensor(labelled),
            image=image,
        )

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _added_special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(index for index, token in added.items() if token.special)
