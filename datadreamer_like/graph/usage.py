"""What a node has used and done so far: rows, requests, tokens, cost, failures.

Whatever works inside a node (an LLM, a trainer) adds to the current usage without knowing the node.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

# A million failed rows must not cost a gigabyte of messages.
_MESSAGES_KEPT = 1_000


@dataclass
class Usage:
    """Counts of one node; safe to add to from several threads.

    Attributes:
        rows: Rows made.
        total_rows: Rows expected, where known.
        requests: Requests that were sent to a model.
        cached: Answers found in the cache instead.
        prompt_tokens: Tokens sent.
        completion_tokens: Tokens received.
        cost: Money spent, in US dollars; 0 where nothing was paid for, None where a price is not known.
        failed: Indices of the rows that have an error instead of a value, as they failed.
        failures: The first thousand of these, row index to message.
        note: A few words on what is happening now, for the progress display.
    """

    rows: int = 0
    total_rows: int | None = None
    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    failed: array[int] = field(default_factory=lambda: array("q"))
    failures: dict[int, str] = field(default_factory=dict)
    note: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(
        self,
        *,
        rows: int = 0,
        requests: int = 0,
        cached: int = 0,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        cost: float | None = 0.0,
    ) -> None:
        """Adds to the counts."""
        with self._lock:
            self.rows += rows
            self.requests += requests
            self.cached += cached
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens
            self.cost = None if self.cost is None or cost is None else self.cost + cost

    @property
    def failed_rows(self) -> int:
        """Number of rows that have an error instead of a value."""
        return len(self.failed)

    def row_failed(self, index: int, message: str) -> None:
        """Counts a row that has an error instead of a value."""
        with self._lock:
            self.failed.append(index)
            if len(self.failures) < _MESSAGES_KEPT:
                self.failures[index] = message

    def forget_failures(self) -> None:
        """Starts counting failed rows anew, where all rows are made again."""
        with self._lock:
            del self.failed[:]
            self.failures.clear()

    def absorb(self, other: Usage) -> None:
        """Adds what a node inside this one has used; its rows stay its own."""
        self.add(
            requests=other.requests,
            cached=other.cached,
            prompt_tokens=other.prompt_tokens,
            completion_tokens=other.completion_tokens,
            cost=other.cost,
        )


_current: ContextVar[Usage | None] = ContextVar("datadreamer_like_usage", default=None)


def current_usage() -> Usage:
    """Returns the usage of the node that is at work in this thread, or a new one that nobody reads."""
    return _current.get() or Usage()


@contextmanager
def counting(usage: Usage) -> Iterator[Usage]:
    """Makes `usage` the current one inside the block."""
    token = _current.set(usage)
    try:
        yield usage
    finally:
        _current.reset(token)
