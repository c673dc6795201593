"""Reads what servers of OpenAI's protocol send: chat completions as answers, and the context window of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from datadreamer_like.errors import MalformedAnswer

from .answer_text import AnswerText, answer_of, answer_text
from .generation import Answer, Sampling, TokenLogprob
from .prices import Prices, total_cost

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion import Choice


def read_answer(
    completions: Sequence[ChatCompletion], sampling: Sampling, address: str, prices: Prices | None = None
) -> Answer:
    """Returns one answer from the completions that were needed for its `n` texts; `address` is for messages.

    Raises:
        MalformedAnswer: The server left out what every completion has.
    """
    choices = [choice for completion in completions for choice in completion.choices][: sampling.n]
    shaped = sampling.schema is not None
    try:
        texts = [_text(choice, shaped) for choice in choices]
        logprobs = [_logprobs(choice) for choice in choices] if sampling.top_logprobs is not None else None
    except (AttributeError, TypeError) as error:
        raise MalformedAnswer(f"{address} sent an answer that cannot be read: {error}.") from error
    usages = [_usage(completion) for completion in completions]
    return answer_of(
        texts,
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached for usage in usages),
        cost=total_cost(prices.cost(**usage._asdict()) if prices and any(usage) else None for usage in usages),
        finish_reasons=[choice.finish_reason for choice in choices],
        logprobs=logprobs,
    )


class _Usage(NamedTuple):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: int = 0
    written: int = 0


def _usage(completion: ChatCompletion) -> _Usage:
    """Returns the tokens of one completion; servers other than OpenAI's leave out what the SDK expects."""
    usage = completion.usage
    if usage is None:
        return _Usage()
    details: Any = getattr(usage, "prompt_tokens_details", None)
    cached, written = (getattr(details, name, None) or 0 for name in ("cached_tokens", "cache_write_tokens"))
    return _Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached, written)


def _text(choice: Choice, shaped: bool) -> AnswerText:
    message = choice.message
    # DeepSeek's and vLLM's names for thoughts.
    thoughts = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    return answer_text(
        message.content,
        choice.finish_reason,
        refusal=getattr(message, "refusal", None),
        reasoning=thoughts if isinstance(thoughts, str) else None,
        shaped=shaped,
    )


def _logprobs(choice: Choice) -> list[TokenLogprob]:
    found: Any = choice.logprobs
    if found is None:
        return []
    if found.content is None:
        # Together's shape: two lists.
        tokens, values = getattr(found, "tokens", None) or (), getattr(found, "token_logprobs", None) or ()
        return [TokenLogprob(token, value) for token, value in zip(tokens, values, strict=True) if value is not None]
    return [
        TokenLogprob(each.token, each.logprob, tuple((top.token, top.logprob) for top in each.top_logprobs or ()))
        for each in found.content
    ]


def served_context_length(models: Sequence[Any], model_name: str) -> int | None:
    """Returns the context window that a server's list of models gives, or None."""
    named = [model for model in models if model.id == model_name] or (models if len(models) == 1 else [])
    for model in named:
        facts: dict[str, Any] = model.to_dict()
        facts.update(facts.get("meta") or {})
        for name in ("max_model_len", "n_ctx", "context_length", "context_window"):
            if isinstance(facts.get(name), int):
                return int(facts[name])
    return None
