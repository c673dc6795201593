"""Rows through a model: one value of each row is sent, and its answer joins its row again, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple, cast

from datadreamer_like.errors import DefinitionError, ModelError
from datadreamer_like.graph.output import BATCH_SIZE, Batch, Column, OutputDataset, OutputIterableDataset
from datadreamer_like.graph.pickles import repickled

from .step import Step

# Answers of a slow model become rows this often, so that progress is seen; those of a fast one in full batches.
_FLUSH_SECONDS = 0.5

FETCH_OPTIONS = frozenset(
    {
        "batch_size",
        "batch_scheduler_buffer_size",
        "adaptive_batch_size",
        "concurrency",
        "progress_interval",
        "cache_only",
        "verbose",
        "log_level",
    }
)
"""Options of a model's `run` that change how answers are fetched, not what they are."""


class Questions(NamedTuple):
    """Values to send to a model, and the rows that they belong to.

    Attributes:
        values: One for each row: what is sent, None where nothing is, or the error of a row that cannot be sent.
        rows: Columns of the same length.
    """

    values: Sequence[Any]
    rows: Batch


class AnsweredRows(NamedTuple):
    """Rows with the answers to their values.

    Attributes:
        values: What was sent; None for a row that could not be.
        rows: Columns of the same length.
        answers: One for each row; None where nothing was sent, or the error of a row that could not be sent.
    """

    values: list[Any]
    rows: Batch
    answers: list[Any]


class RowAnswers:
    """Sends the values of rows to a model and joins its answers to the rows.

    Args:
        questions: Read as far ahead as the model reads.
    """

    def __init__(self, questions: Iterable[Questions]) -> None:
        self._questions = questions
        self._waiting: deque[tuple[Questions, int, Sequence[int]]] = deque()

    def values(self) -> Iterator[Any]:
        """Yields what is sent, for the model to read."""
        count = 0
        for questions in self._questions:
            # Positions in the batch of the rows that are sent.
            sent: Sequence[int] = range(len(questions.values))
            if any(value is None or isinstance(value, ModelError) for value in questions.values):
                sent = [
                    position
                    for position, value in enumerate(questions.values)
                    if value is not None and not isinstance(value, ModelError)
                ]
            self._waiting.append((questions, count, sent))
            count += len(sent)
            for position in sent:
                yield questions.values[position]

    def row(self, index: int) -> dict[str, Any]:
        """Returns the row of the `index`-th value that was sent, which has not been yielded yet."""
        questions, first, sent = next(entry for entry in self._waiting if index < entry[1] + len(entry[2]))
        position = sent[index - first]
        return {name: column[position] for name, column in questions.rows.items()}

    def joined(self, answers: Iterable[Any]) -> Iterator[AnsweredRows]:
        """Yields rows with the model's answers, in order.

        Raises:
            DefinitionError: The model gave fewer answers than it was sent values.
        """
        done: list[Any] = []
        start = 0
        due = time.monotonic() + _FLUSH_SECONDS
        for answer in answers:
            while not self._waiting[0][2]:
                yield self._unsent()
            questions, _, sent = self._waiting[0]
            if len(sent) == len(questions.values):
                done.append(answer)
            else:
                done.extend(_unsent_from(questions.values, len(done)))
                done.append(answer)
                done.extend(_unsent_from(questions.values, len(done)))
            if len(done) == len(questions.values):
                yield _part(questions, done, start)
                self._waiting.popleft()
                done, start = [], 0
            elif time.monotonic() >= due:
                yield _part(questions, done, start)
                start = len(done)
            else:
                continue
            due = time.monotonic() + _FLUSH_SECONDS
        while self._waiting:
            if self._waiting[0][2]:
                raise DefinitionError("The model gave fewer answers than it was sent prompts.")
            yield self._unsent()

    def _unsent(self) -> AnsweredRows:
        questions, _, _ = self._waiting.popleft()
        return _part(questions, questions.values, 0)


def _unsent_from(values: Sequence[Any], start: int) -> Iterator[Any]:
    """Yields the values from `start` on that are not sent, up to the next one that is."""
    return takewhile(lambda value: value is None or isinstance(value, ModelError), islice(values, start, None))


def _part(questions: Questions, answers: Sequence[Any], start: int) -> AnsweredRows:
    stop = len(answers)
    values = [None if isinstance(value, ModelError) else value for value in questions.values[start:stop]]
    rows = questions.rows
    if (start, stop) != (0, len(questions.values)):
        rows = {name: column[start:stop] for name, column in rows.items()}
    return AnsweredRows(values, rows, list(answers[start:stop]))


def columns_together(columns: Mapping[str, Column], what: str) -> Iterator[Batch]:
    """Yields batches of several columns side by side.

    Args:
        columns: Name in the batches, to column. Columns of one step that makes its rows when they are asked for are
            read in one pass.
        what: The step that reads them, for messages.

    Raises:
        DefinitionError: The columns have different numbers of rows.
    """
    sizes = {name: column.num_rows for name, column in columns.items()}
    if len({size for size in sizes.values() if size is not None}) > 1:
        raise DefinitionError(f"{what}: the inputs have different numbers of rows: {sizes}. Give columns of one step.")
    first = next(iter(columns.values()))
    if len(columns) == 1:
        name = next(iter(columns))
        for batch in first.batches():
            yield {name: next(iter(batch.values()))}
    elif all(column.step is first.step and not isinstance(column, OutputDataset) for column in columns.values()):
        for batch in step_of(first).output.batches():
            yield {name: batch[column.column_names[0]] for name, column in columns.items()}
    else:
        yield from _zipped(columns, what)


def whole_rows(column: Column) -> Iterator[Batch]:
    """Yields batches of all columns of the step that a column belongs to, ready to be stored again."""
    rows = step_of(column).output
    for batch in rows.batches():
        yield {name: repickled(values) for name, values in batch.items()} if rows.pickled else batch


def step_of(column: Column) -> Step:
    """Returns the step that a column belongs to."""
    return cast(Step, column.step)


def num_rows_of(columns: Mapping[str, Column]) -> int | None:
    """Returns the number of rows that columns side by side have; None where it is not known beforehand."""
    return next((column.num_rows for column in columns.values() if column.num_rows is not None), None)


def columns_of(column: Column) -> list[str]:
    """Returns the names of all columns of the step that a column belongs to."""
    rows: OutputDataset | OutputIterableDataset = step_of(column).output
    return rows.column_names


def _zipped(columns: Mapping[str, Column], what: str) -> Iterator[Batch]:
    rows = zip(*(column.values() for column in columns.values()), strict=True)
    try:
        while portion := list(islice(rows, BATCH_SIZE)):
            yield dict(zip(columns, map(list, zip(*portion, strict=True)), strict=True))
    except ValueError as error:
        if "argument" not in str(error):
            raise
        raise DefinitionError(
            f"{what}: the inputs {', '.join(columns)} have different numbers of rows. Give columns of one step."
        ) from error
