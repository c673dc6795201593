"""Extracts the answer from a provider's message: content parts, reasoning, refusals, truncated and empty messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datadreamer_like.errors import MalformedAnswer, ModelError, RejectedAnswer

from .generation import Answer


class AnswerText(NamedTuple):
    """One text of an answer, the model's reasoning, and the error if the text is missing or rejected."""

    text: str | None
    reasoning: str | None = None
    error: ModelError | None = None


def answer_text(
    content: object,
    finish_reason: str | None,
    *,
    refusal: str | None = None,
    reasoning: str | None = None,
    shaped: bool = False,
) -> AnswerText:
    """Separates a message into answer and reasoning.

    An empty text is an answer if the model chose to stop, but an error if the token limit or a filter ended it. A
    truncated answer to a schema (`shaped`) is an error too.

    `content` is a text, a list of parts (mappings or objects with `type`), or None, else a TypeError is raised.
    `finish_reason` is in OpenAI's terms: "stop", "length", "content_filter", ... `refusal` is the provider's message if
    the model refused; `reasoning` is what it sent in a separate field.
    """
    thoughts = [reasoning] if reasoning else []
    text = _joined(content, thoughts)
    if text is not None:
        text = _split_off_thoughts(_valid(text), thoughts, finish_reason)
    kept = _valid("\n".join(thoughts)) or None
    error = _answer_error(text, finish_reason, refusal, shaped)
    return AnswerText(text if isinstance(error, RejectedAnswer | None) else None, kept, error)


def answer_of(texts: Sequence[AnswerText], **facts: Any) -> Answer:
    """Returns the answer to one request from its `n` texts and the other attributes of `Answer`.

    It has an error if none of the texts is an answer.
    """
    reasoning = [text.reasoning for text in texts] if any(text.reasoning for text in texts) else None
    if texts and all(text.error is not None for text in texts):
        kept = [text.text for text in texts] if texts[0].text is not None else ()
        return Answer(kept, **{**facts, "logprobs": None}, reasoning=reasoning, error=texts[0].error)
    return Answer([text.text if text.error is None else None for text in texts], **facts, reasoning=reasoning)


def _joined(content: object, thoughts: list[str]) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise TypeError(f"content is {type(content).__name__}, neither a text nor a list of parts")
    texts = []
    for part in content:
        kind = _field(part, "type")
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "output_text"):
            texts.append(str(_field(part, "text") or ""))
        elif kind in ("thinking", "reasoning"):
            thought = _field(part, "thinking") or _field(part, "text")
            thoughts.append(thought if isinstance(thought, str) else _joined(thought, thoughts) or "")
    return "".join(texts) if texts else None


def _field(part: object, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def _split_off_thoughts(text: str, thoughts: list[str], finish_reason: str | None) -> str | None:
    # Open models put these tags around their reasoning, and some servers leave them in the text.
    for opening, closing in (("<think>", "</think>"), ("[THINK]", "[/THINK]")):
        # If the opening tag is part of the prompt, only the closing tag is in the answer.
        thought, closed, rest = text.rpartition(closing)
        if closed:
            thoughts.append(thought.strip().removeprefix(opening).strip())
            return rest.lstrip()
        if text.lstrip().startswith(opening) and finish_reason == "length":
            thoughts.append(text.strip().removeprefix(opening).strip())
            return None
    return text


def _answer_error(text: str | None, finish_reason: str | None, refusal: str | None, shaped: bool) -> ModelError | None:
    if finish_reason == "content_filter":
        return ModelError("The provider's content filter withheld the answer. Change the prompt.")
    if text is None or not text.strip():
        if refusal:
            return ModelError(f"The model refused to answer: {refusal}")
        if finish_reason == "length":
            return ModelError("The model used up its tokens before it wrote any text. Raise max_new_tokens.")
        if text is None:
            return MalformedAnswer(f"The answer has no text (finish reason {finish_reason!r}).")
    elif shaped and finish_reason == "length":
        why = "The answer was cut off before it was complete; the schema needs all. Raise max_new_tokens."
        return RejectedAnswer.of(text, why)
    return None


def _valid(text: str) -> str:
    """Replaces unpaired surrogates, which JSON allows but UTF-8 files do not."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
