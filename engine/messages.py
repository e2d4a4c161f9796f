"""A question as chat messages in HF's form: a text becomes one user turn, messages are checked.

Knows no template and no tokenizer; a fault is an InvalidInputError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagebeam.engine.errors import InvalidInputError

Message = Mapping[str, Any]
QuestionText = str | Sequence[Message]


def as_messages(question: QuestionText, has_image: bool) -> list[Message]:
    """Chat messages whose last is the user's; a text gets the image part first where there is one."""
    if isinstance(question, str):
        if not question.strip():
            raise InvalidInputError("the question is empty; ask something")
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if has_image:
            content.insert(0, {"type": "image"})
        return [{"role": "user", "content": content}]
    if not (isinstance(question, (list, tuple)) and question and all(map(_is_message, question))):
        raise InvalidInputError(
            "the question must be a text or a list of chat messages {'role': ..., 'content': a text "
            f"or a list of parts like {{'type': 'text', 'text': ...}}}}, got {question!r}"
        )
    if question[-1]["role"] != "user":
        raise InvalidInputError("the last chat message must be the user's")
    return list(question)


def last_text(messages: Sequence[Message]) -> str:
    """The last turn's text: what the judge is told the question was."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _is_message(message: object) -> bool:
    if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
        return False
    content = message.get("content")
    if isinstance(content, str):
        return True
    return isinstance(content, (list, tuple)) and all(map(_is_part, content))


def _is_part(part: object) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (
        part.get("type") == "text" and isinstance(part.get("text"), str)
    )
