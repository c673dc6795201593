"""Rows through a model: one value of each row goes out, what comes back joins its row again, in order."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from datadreamer_like.graph.output import BATCH_SIZE, Batch
from datadreamer_like.graph.usage import Usage, counting, current_usage

from .columns import columns_of as columns_of
from .columns import columns_together as columns_together
from .columns import num_rows_of as num_rows_of
from .columns import whole_rows as whole_rows

# Answers of a slow model become rows this often, so that progress is seen; those of a fast one in full batches.
_FLUSH_SECONDS = 0.5

HOW_ASKED = frozenset(
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
"""Options of a model's `run` that change how answers are fetched, never what is asked."""

T = TypeVar("T")

_END = object()

Portion = tuple[list[Any], Batch]
"""Values to ask a model about, and the rows that they belong to, as columns of the same length."""


def answered(portions: Iterable[Portion], ask: Callable[[Iterator[Any]], Iterator[Any]]) -> Iterator[Portion]:
    """Yields answers and the rows that they belong to.

    Args:
        portions: Read as far ahead as the model reads. A row whose value is None is not asked about and gets None.
        ask: Takes values and yields an answer to each, in order.
    """
    names: list[str] = []
    waiting: deque[tuple[Any, ...]] = deque()
    done: list[tuple[Any, ...]] = []
    around = current_usage()
    usage = _RowUsage(around)

    def values() -> Iterator[Any]:
        count = 0
        for asked, rows in _under(around, portions):
            if not names:
                names.extend(rows)
            for row in zip(asked, *rows.values(), strict=True):
                waiting.append(row)
                if row[0] is None:
                    usage.skipped.append(count)
                else:
                    count += 1
                    yield row[0]

    def flushed() -> Portion:
        answers, *columns = map(list, zip(*done, strict=True))
        done.clear()
        return answers, dict(zip(names, columns, strict=True))

    due = time.monotonic() + _FLUSH_SECONDS
    for answer in _under(usage, ask(values()), only_first=True):
        row = waiting.popleft()
        while row[0] is None:
            done.append(row)
            row = waiting.popleft()
        done.append((answer, *row[1:]))
        if len(done) >= BATCH_SIZE or time.monotonic() >= due:
            yield flushed()
            due = time.monotonic() + _FLUSH_SECONDS
    done.extend(waiting)
    if done:
        yield flushed()


class _RowUsage(Usage):
    """Counts for another usage, and tells it of failures by row where the model counts only what it was asked.

    Attributes:
        skipped: For each row that is not asked about, how many were asked about before it.
    """

    def __init__(self, around: Usage) -> None:
        super().__init__()
        self._around = around
        self.skipped: list[int] = []

    def add(self, **counts: Any) -> None:
        """Adds to the other usage."""
        self._around.add(**counts)

    def row_failed(self, index: int, message: str) -> None:
        """Tells the other usage which row it was."""
        self._around.row_failed(index + bisect_right(self.skipped, index), message)


def _under(usage: Usage, values: Iterable[T], only_first: bool = False) -> Iterator[T]:
    """Yields values that are made while `usage` is the current one; a model asks for it once, at its first answer."""
    iterator = iter(values)
    while True:
        with counting(usage):
            value = next(iterator, _END)
        if value is _END:
            return
        yield cast(T, value)
        if only_first:
            yield from iterator
            return
