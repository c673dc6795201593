"""What functions of a script get and return for answers: objects of their own, and values that fit one column."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from datadreamer_like.errors import RejectedAnswer
from datadreamer_like.models.llms.generation import Answer
from datadreamer_like.storage.schemas import widened
from datadreamer_like.storage.values import to_batch

T = TypeVar("T", Answer, dict[str, Any])

_UNCHANGEABLE = (str, int, float, bool, bytes, type(None))


class ValueColumn:
    """The column of the values that a function returns, by name `function`, for answers in order."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._schema: pa.Schema | None = None

    def fitting(self, answers: Sequence[Any]) -> list[Any]:
        """Returns the answers; those whose value does not fit the values before it have an error instead."""
        given = [None if answer is None or answer.error is not None else answer.value for answer in answers]
        if self._take(given) is None:
            return list(answers)
        return [self._checked(answer) for answer in answers]

    def _checked(self, answer: Answer | None) -> Answer | None:
        if answer is None or answer.error is not None:
            return answer
        problem = self._take([answer.value])
        if problem is None:
            return answer
        reason = f"{self._function} returned {shown(answer.value)}, which does not fit its column: {problem}"
        return replace(answer, value=None, error=RejectedAnswer.of(answer.text, reason))

    def _take(self, values: list[Any]) -> str | None:
        """Adds values to the column, or returns why they do not fit."""
        try:
            schema = to_batch({self._function: values}, "the step").schema
            self._schema = schema if self._schema is None else widened(self._schema, schema, "the step")
        except Exception as error:
            return str(error)
        return None


def own_copy(given: T) -> T:
    """Returns a copy for a function that may change what it gets: an answer, or the columns of a row."""
    if isinstance(given, Answer):
        return replace(
            given,
            texts=list(given.texts),
            finish_reasons=list(given.finish_reasons),
            logprobs=None if given.logprobs is None else [list(tokens) for tokens in given.logprobs],
            reasoning=None if given.reasoning is None else list(given.reasoning),
            tool_calls=copy.deepcopy(given.tool_calls),
        )
    return {name: value if isinstance(value, _UNCHANGEABLE) else _deep_copy(value) for name, value in given.items()}


def _deep_copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # an object that cannot be copied
        return value


def described(error: Exception) -> str:
    """Returns an exception's type and message, also if its message cannot be made."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def shown(value: Any) -> str:
    """Returns a short form of a value, with its type, for messages."""
    try:
        text = repr(value)
    except Exception:
        text = "a value"
    return f"{text if len(text) <= 200 else text[:200] + '...'} ({type(value).__name__})"
