"""The output column `logprobs` of prompting steps: the log-probabilities of an answer's tokens, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import Batch
from datadreamer_like.models.llms.generation import Answer

LOGPROBS = "logprobs"
"""Name of the argument and of the output column."""


def logprob_columns(args: Mapping[str, Any], answers: Sequence[Answer | None]) -> Batch:
    """Returns the column of a step with these arguments, if it has it.

    A value is a dictionary of `tokens` and, for each of them, lists of `top_tokens` and `top_logprobs`, likeliest
    first; None for an answer that failed, or whose engine returned none.
    """
    return {LOGPROBS: [*map(_logprobs_of, answers)]} if stores_logprobs(args) else {}


def stores_logprobs(args: Mapping[str, Any]) -> bool:
    """Whether the arguments of a step ask for the column; `logprobs=True` is a flag of OpenAI's protocol instead."""
    return args[LOGPROBS] is not None and not isinstance(args[LOGPROBS], bool)


def logprob_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options for the LLM that the argument `logprobs` stands for."""
    if args[LOGPROBS] is None:
        return {}
    return {"top_logprobs": args[LOGPROBS]} if stores_logprobs(args) else {LOGPROBS: args[LOGPROBS]}


def check_logprobs(name: str, args: Mapping[str, Any], num_answers: int) -> None:
    """Raises `DefinitionError` if the step `name` cannot store log-probabilities with its arguments."""
    if args[LOGPROBS] < 1:
        raise DefinitionError(
            f'"{name}": logprobs is {args[LOGPROBS]}; expected the number of tokens to store, from 1.'
        )
    if num_answers != 1:
        raise DefinitionError(f'"{name}": with logprobs, n must be 1: each row has one answer and its tokens.')
    if args.get("top_logprobs") is not None:
        raise DefinitionError(f'"{name}": give logprobs or top_logprobs, not both; logprobs stores them.')


def _logprobs_of(answer: Answer | None) -> dict[str, Any] | None:
    if answer is None or answer.error is not None:
        return None
    found = answer.logprobs[0] if answer.logprobs else ()
    if not any(each.top for each in found):
        return None
    return {
        "tokens": [each.token for each in found],
        "top_tokens": [[token for token, _ in each.top] for each in found],
        "top_logprobs": [[value for _, value in each.top] for each in found],
    }
