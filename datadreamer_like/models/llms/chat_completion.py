"""Reads the parts of a chat completion, in the protocol's form and in those of servers that differ from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .answer_text import AnswerText, answer_text
from .generation import TokenLogprob
from .prices import Usage, token_count
from .tool_calls import openai_calls
from .wire import Fields


def usage_of(completion: Fields) -> Usage:
    """Returns the tokens of one completion; servers other than OpenAI's leave out what the SDK expects."""
    usage, details = completion.usage, getattr(completion.usage, "prompt_tokens_details", None)
    return Usage(
        token_count(usage, "prompt_tokens"),
        token_count(usage, "completion_tokens"),
        token_count(details, "cached_tokens") or 0,
        token_count(details, "cache_write_tokens") or 0,
    )


def in_order(completion: Fields) -> list[Any]:
    """Returns the choices of a completion by their index, if each has one."""
    choices: list[Any] = list(completion.choices)
    if len(choices) > 1 and all(isinstance(getattr(choice, "index", None), int) for choice in choices):
        choices.sort(key=lambda choice: int(choice.index))
    return choices


def text_of(choice: Fields, shaped: bool, wanted_back: Collection[str] = ()) -> AnswerText:
    """Returns the text of one choice; a choice without a message raises ValueError.

    `wanted_back` are the fields of thoughts that the server wants back with calls.
    """
    message = getattr(choice, "message", None)
    if not isinstance(message, Fields):
        raise ValueError("one of its choices has no message")
    # DeepSeek's and vLLM's names for thoughts.
    thoughts = message.reasoning_content or message.reasoning
    return answer_text(
        message.content,
        finish_reason_of(choice),
        refusal=message.refusal,
        reasoning=thoughts if isinstance(thoughts, str) else None,
        shaped=shaped,
        calls=openai_calls(message, wanted_back) if message.tool_calls else (),
    )


def finish_reason_of(choice: Fields) -> str | None:
    """Returns why the text ended, if the server says it in a word."""
    reason: Any = choice.finish_reason
    return reason if isinstance(reason, str) else None


def logprobs_of(choice: Fields) -> list[TokenLogprob]:
    """Returns the tokens of the text with their log-probabilities, in either of the protocol's two forms."""
    found: Any = choice.logprobs
    if found is None:
        return []
    if found.content is None:
        # Together's shape: two lists.
        tokens, values = found.tokens or (), found.token_logprobs or ()
        pairs = zip(tokens, values, strict=True)
        return [TokenLogprob(token, float(value)) for token, value in pairs if value is not None]
    return [
        TokenLogprob(
            each.token,
            float(each.logprob),
            tuple((top.token, float(top.logprob)) for top in each.top_logprobs or () if top.logprob is not None),
        )
        for each in found.content
        if each.logprob is not None
    ]
