"""Unusable answers: rejecting an answer, and logging failed ones."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from datadreamer_like.errors import ModelError

logger = logging.getLogger("datadreamer_like")


class Result(Protocol):
    """What the pipeline reads of an answer; that of a failed row has an `error` and is not stored."""

    error: ModelError | None
    cost: float | None
    """US dollars; None if unknown."""
    prompt_tokens: int
    completion_tokens: int


A = TypeVar("A", bound=Result)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Returned by a `parse` function for an answer that cannot be used; the model is asked again, with the `reason`.

    Example:
        >>> def parse(answer, row):
        ...     return int(answer.text) if answer.text.isdigit() else Rejected("It must be a whole number.")
    """

    reason: str


def log_failures(answers: Iterable[A], on_error: str, words: str = "prompts failed and have no answer") -> Iterator[A]:
    """Yields answers, and logs at the end how many failed; with `on_error="raise"`, raises the first error.

    `words` are what the message says of them.
    """
    count = rows = 0
    first: tuple[int, ModelError] | None = None
    for answer in answers:
        if answer.error is not None:
            if on_error == "raise":
                if isinstance(answers, Generator):
                    # The error's traceback would keep the run alive, and it would send further requests.
                    answers.close()
                raise answer.error
            count += 1
            first = first or (rows, answer.error)
        rows += 1
        yield answer
    if first is not None:
        logger.warning("%s of %s %s; the first is row %s: %s", f"{count:,}", f"{rows:,}", words, *first)
