"""Chat completions, as the OpenAI SDK gives them, read as answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datadreamer_like.errors import MalformedAnswer

from .generation import Answer, Sampling, TokenLogprob, missing_text

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from openai.types.chat.chat_completion import Choice


def read_answer(completions: Sequence[ChatCompletion], sampling: Sampling, address: str) -> Answer:
    """Returns one answer from the completions that were needed for its `n` texts.

    An answer without any text is a failed row: refused, filtered, or cut off before the first word.

    Raises:
        MalformedAnswer: The server at `address` left out what every completion has.
    """
    choices = [choice for completion in completions for choice in completion.choices][: sampling.n]
    try:
        texts = [_valid(choice.message.content) for choice in choices]
        reasons = [choice.finish_reason for choice in choices]
        if all(text is None for text in texts):
            return Answer.failed(missing_text(reasons[0], getattr(choices[0].message, "refusal", None)))
        logprobs = [_logprobs(choice) for choice in choices] if sampling.top_logprobs is not None else None
    except (AttributeError, TypeError) as error:
        raise MalformedAnswer(f"{address} sent an answer that cannot be read: {error}.") from error
    # Servers other than OpenAI's leave out what the SDK takes for granted.
    usages = [completion.usage for completion in completions if completion.usage is not None]
    return Answer(
        texts,
        prompt_tokens=sum(usage.prompt_tokens or 0 for usage in usages),
        completion_tokens=sum(usage.completion_tokens or 0 for usage in usages),
        finish_reasons=reasons,
        logprobs=logprobs,
    )


def _valid(text: str | None) -> str | None:
    """Replaces what is no character: half a surrogate pair, which JSON can carry and no file can."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _logprobs(choice: Choice) -> list[TokenLogprob]:
    if choice.logprobs is None or choice.logprobs.content is None:
        return []
    return [
        TokenLogprob(token.token, token.logprob, tuple((top.token, top.logprob) for top in token.top_logprobs or ()))
        for token in choice.logprobs.content
    ]
