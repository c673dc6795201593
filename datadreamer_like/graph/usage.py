"""Usage counts of a node: rows, requests, tokens, cost, failures.

Models and trainers add to the current usage without knowing the node.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from datadreamer_like.errors import DataDreamerError, ModelError

logger = logging.getLogger("datadreamer_like")

# Bounds the memory for messages of failed rows.
_MESSAGES_KEPT = 1_000


@dataclass
class Usage:
    """Counts of one node; thread-safe.

    Attributes:
        total_rows: Rows expected, if known.
        cached: Answers found in the cache, in addition to the requests sent.
        cost: US dollars spent; 0 if nothing was paid for, None if a price is unknown.
        failed: Indices of rows with an error instead of a value, in order of failure.
        retriable_rows: Number of these that may succeed if they are requested again.
        retries: Whether the node runs again for these, so that the other failed rows are left as they are.
        failures: Messages of the first thousand of these, by row index.
        cut_off: Indices of rows whose answer the limit of tokens cut off, and which keep it.
        note: Current activity, for the progress display.
    """

    rows: int = 0
    total_rows: int | None = None
    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    failed: array[int] = field(default_factory=lambda: array("q"))
    retriable_rows: int = 0
    retries: bool = False
    failures: dict[int, str] = field(default_factory=dict)
    cut_off: array[int] = field(default_factory=lambda: array("q"))
    note: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, cost: float | None = 0.0, **counts: int) -> None:
        """Adds to the cost and to other counts by name, such as `rows=1`."""
        with self._lock:
            self.cost = None if self.cost is None or cost is None else self.cost + cost
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    @property
    def failed_rows(self) -> int:
        """Number of rows with an error instead of a value."""
        return len(self.failed)

    def row_failed(self, index: int, error: DataDreamerError) -> None:
        """Records a failed row; only errors of models may be over in the next run."""
        with self._lock:
            self.failed.append(index)
            self.retriable_rows += isinstance(error, ModelError) and not error.lasting
            if len(self.failures) < _MESSAGES_KEPT:
                self.failures[index] = str(error)

    def row_cut_off(self, index: int) -> None:
        """Records a row whose answer the limit of tokens cut off, and which keeps it."""
        with self._lock:
            self.cut_off.append(index)

    def forget_failures(self) -> None:
        """Clears the failed rows and those cut off, before all rows are made again."""
        with self._lock:
            del self.failed[:]
            del self.cut_off[:]
            self.retriable_rows = 0
            self.failures.clear()

    def move_failures(self, places: Sequence[int]) -> None:
        """Gives each such row its new index, `places[index]`, after the rows were sorted."""
        with self._lock:
            self.failed = array("q", [places[index] for index in self.failed])
            self.cut_off = array("q", [places[index] for index in self.cut_off])
            self.failures = {places[index]: message for index, message in self.failures.items()}

    def of_models(self) -> dict[str, Any]:
        """Returns the counts of models as arguments of `add`, to add them to those of another node or process."""
        names = ("requests", "cached", "prompt_tokens", "completion_tokens", "cost")
        return {name: getattr(self, name) for name in names}


def log_cut_off(name: str, rows: Sequence[int]) -> None:
    """Warns of the rows of a step whose answers the limit of tokens cut off, if there are any."""
    if rows:
        text = (
            "%s: the limit of tokens cut off the answers of %s of its rows, which keep them; the first is row %s. "
            "step.cut_off has all of them. Raise max_new_tokens if their ends matter."
        )
        logger.warning(text, name, f"{len(rows):,}", rows[0])


_current: ContextVar[Usage | None] = ContextVar("datadreamer_like_usage", default=None)


def current_usage() -> Usage:
    """Returns the usage of the node that is running in this context, or a new one outside a node."""
    return _current.get() or Usage()


@contextmanager
def counting(usage: Usage) -> Iterator[Usage]:
    """Makes `usage` the current one inside the block."""
    token = _current.set(usage)
    try:
        yield usage
    finally:
        _current.reset(token)
