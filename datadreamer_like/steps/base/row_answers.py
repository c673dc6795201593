"""Sending one value per row to a model, and joining the answers with their rows in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard

from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.graph.rows import Batch

# A slow model's answers are passed on this often, so that progress is visible; a fast one's in full batches.
_FLUSH_SECONDS = 0.5

FETCH_OPTIONS = frozenset({
    "batch_size", "batch_scheduler_buffer_size", "adaptive_batch_size", "concurrency", "progress_interval",
    "cache_only", "on_error", "verbose", "log_level",
})  # fmt: skip
"""Options of a model's `run` that change how answers are fetched, not the answers."""


class Questions(NamedTuple):
    """Values to send to a model, and their rows as columns of the same length.

    A value is None where there is nothing to send, or the error of a row that cannot be sent.
    """

    values: Sequence[Any]
    rows: Batch

    def split(self, most: int) -> Iterator[Questions]:
        """Yields parts of at most `most` rows."""
        for start in range(0, len(self.values), most):
            part = slice(start, start + most)
            yield Questions(self.values[part], {name: column[part] for name, column in self.rows.items()})


class AnsweredRows(NamedTuple):
    """Rows with the values that were sent for them and the answers; `rows` are columns of the same length.

    For a row that could not be sent, the value is None and the answer is the error; both are None for nothing to send.
    """

    values: list[Any]
    rows: Batch
    answers: list[Any]


class RowAnswers:
    """Sends the values of rows to a model, which reads them lazily, and joins its answers to the rows."""

    def __init__(self, questions: Iterable[Questions]) -> None:
        self._questions = questions
        self._waiting: deque[tuple[Questions, int, list[int]]] = deque()

    def values(self) -> Iterator[Any]:
        """Yields the values to send, for the model to read."""
        count = 0
        for questions in self._questions:
            # Positions in the batch of the rows that are sent.
            sent = [position for position, value in enumerate(questions.values) if is_sent(value)]
            self._waiting.append((questions, count, sent))
            count += len(sent)
            yield from (questions.values[position] for position in sent)

    def row(self, index: int) -> dict[str, Any]:
        """Returns the row of the `index`-th value sent, which must not have been yielded yet."""
        questions, first, sent = next(entry for entry in self._waiting if index < entry[1] + len(entry[2]))
        position = sent[index - first]
        return {name: column[position] for name, column in questions.rows.items()}

    def joined(self, answers: Iterable[Any]) -> Iterator[AnsweredRows]:
        """Yields rows with the model's answers, in order."""
        done: list[Any] = []
        start, due = 0, time.monotonic() + _FLUSH_SECONDS
        for answer in answers:
            while self._waiting and not self._waiting[0][2]:
                yield self._unsent()
            if not self._waiting:
                raise DefinitionError("The model returned more answers than prompts were sent.")
            questions, _, _ = self._waiting[0]
            done += _unsent_from(questions.values, len(done))
            done.append(answer)
            done += _unsent_from(questions.values, len(done))
            is_complete = len(done) == len(questions.values)
            if is_complete or time.monotonic() >= due:
                yield _part(questions, done, start)
                start, due = len(done), time.monotonic() + _FLUSH_SECONDS
            if is_complete:
                self._waiting.popleft()
                done, start = [], 0
        while self._waiting:
            if self._waiting[0][2]:
                raise DefinitionError("The model returned fewer answers than prompts were sent.")
            yield self._unsent()

    def _unsent(self) -> AnsweredRows:
        questions, _, _ = self._waiting.popleft()
        return _part(questions, questions.values, 0)


def is_sent(value: Any) -> TypeGuard[Any]:
    """Returns whether a row's value is sent to the model."""
    return value is not None and not isinstance(value, ModelError)


def _unsent_from(values: Sequence[Any], start: int) -> Sequence[Any]:
    """Returns the values from `start` that are not sent, up to the next one that is."""
    stop = start
    while stop < len(values) and not is_sent(values[stop]):
        stop += 1
    return values[start:stop]


def _part(questions: Questions, answers: Sequence[Any], start: int) -> AnsweredRows:
    stop = len(answers)
    values = [None if isinstance(value, ModelError) else value for value in questions.values[start:stop]]
    rows = questions.rows
    if (start, stop) != (0, len(questions.values)):
        rows = {name: column[start:stop] for name, column in rows.items()}
    return AnsweredRows(values, rows, list(answers[start:stop]))
