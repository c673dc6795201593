"""The progress display of a session: a live table in a terminal, periodic lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .usage import Usage

if TYPE_CHECKING:
    from rich.live import Live

logger = logging.getLogger("datadreamer_like")

# Before these have gone by since the first rows, a speed or a remaining time would be a guess.
_LEAST_SECONDS, _LEAST_CHANGES = 5.0, 3


@dataclass
class _Task:
    name: str
    usage: Usage
    interval: float | None
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    first: tuple[float, int] = (0.0, 0)  # when rows were first seen to be done, and how many
    last: int = 0
    changes: int = 0

    def rate(self) -> float | None:
        """Returns the rows a second since the first ones, or None if that is too early to say.

        The time of loading before them does not count, nor do the rows that a resumed run starts with. Call it about
        once a second, so that it sees the number of rows change.
        """
        now, rows = time.monotonic(), self.usage.rows
        if not self.last or rows < self.last:
            self.first, self.last, self.changes = (now, rows), rows, 0
        elif rows > self.last:
            self.last, self.changes = rows, self.changes + 1
        seconds = now - self.first[0]
        early = seconds < _LEAST_SECONDS or self.changes < _LEAST_CHANGES
        return None if early else (rows - self.first[1]) / seconds

    def line(self) -> str:
        usage, rate, seconds = self.usage, self.rate(), time.monotonic() - self.started
        parts = []
        if usage.rows or usage.total_rows:
            parts.append(f"{usage.rows:,}" + (f" of {usage.total_rows:,}" if usage.total_rows else "") + " rows")
        if usage.note:
            parts.append(usage.note)
        if rate is not None and rate >= 0.05:
            parts.append(f"{rate:,.1f} rows/s" if rate < 100 else f"{rate:,.0f} rows/s")
        if usage.total_rows and rate and usage.rows < usage.total_rows:
            parts.append(f"{duration((usage.total_rows - usage.rows) / rate)} left")
        return ", ".join([*parts, *describe_usage(usage), f"{duration(seconds)} so far"])


class Progress:
    """Shows the running nodes of a session on standard error; if `quiet`, only log records."""

    def __init__(self, quiet: bool) -> None:
        self.stream = sys.stderr
        self.quiet = quiet
        self._tasks: list[_Task] = []
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._stopped: threading.Event | None = None

    @contextmanager
    def show(self, name: str, usage: Usage, interval: float | None) -> Iterator[None]:
        """Shows a node and its `usage` while the block runs; every `interval` seconds where there is no terminal."""
        task = _Task(name, usage, interval)
        with self._lock:
            self._tasks.append(task)
            self._start()
        try:
            yield
        finally:
            with self._lock:
                self._tasks.remove(task)
                if not self._tasks:
                    self._stop()

    def say(self, text: str) -> None:
        """Writes one line above the live table."""
        live = self._live  # another thread may reset it
        if live is not None:
            live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self.stream.write(text + "\n")
            self.stream.flush()

    def _start(self) -> None:
        if self.quiet or self._live is not None or self._stopped is not None:
            return
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self.stream), get_renderable=self._table, transient=True, redirect_stdout=False,
                redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
        else:
            self._stopped = threading.Event()
            threading.Thread(target=self._tell, args=(self._stopped,), daemon=True).start()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        if self._stopped is not None:
            self._stopped.set()
        self._live = self._stopped = None

    def _table(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        for task in list(self._tasks):
            table.add_row(Spinner("dots"), Text(task.name, "bold"), Text(task.line()))
        return table

    def _tell(self, stopped: threading.Event) -> None:
        while not stopped.wait(1.0):
            now = time.monotonic()
            for task in list(self._tasks):
                task.rate()
                if task.interval is not None and now - task.said >= task.interval:
                    task.said = now
                    logger.info("%s: %s", task.name, task.line())


class ProgressHandler(logging.Handler):
    """Passes log records to a session's progress display."""

    def __init__(self, progress: Progress, log_date: bool) -> None:
        super().__init__()
        self.progress = progress
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s" if log_date else "%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record's line."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            self.progress.say(prefix + self.format(record))
        except Exception:  # a closed terminal must not end the work
            self.handleError(record)


def describe_usage(usage: Usage) -> list[str]:
    """Returns short descriptions of requests, tokens, cost and failed rows."""
    parts = []
    if usage.requests:
        parts.append(f"{usage.requests:,} request{'s' if usage.requests != 1 else ''}")
    if usage.cached:
        parts.append(f"{usage.cached:,} cached")
    if usage.prompt_tokens or usage.completion_tokens:
        parts.append(f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens")
    if usage.cost is None:
        parts.append("cost unknown")
    elif usage.cost:
        parts.append(f"{usage.cost:,.4f} USD")
    if usage.failed_rows:
        parts.append(f"{usage.failed_rows:,} failed")
    return parts


def duration(seconds: float) -> str:
    """Formats seconds for display."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
