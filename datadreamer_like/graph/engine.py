"""Where work runs: an engine finds or makes a node's result, and applies a function to batches of rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .manifest import Manifest
from .progress import Progress, describe_usage, duration
from .results import Kept, Outcome, Results, Wanted
from .usage import Usage, counting, current_usage

logger = logging.getLogger("datadreamer_like")

B = TypeVar("B")
R = TypeVar("R")


class Work(Protocol):
    """What an engine needs of a node."""

    usage: Usage
    progress_interval: float | None

    @property
    def wanted(self) -> Wanted:
        """The result, and where it belongs."""

    def build(self, draft: Path) -> Outcome:
        """Makes the result: fills the empty folder `draft` and returns `Kept`, or returns `OnDemand`."""

    def complete(self, manifest: Manifest, seconds: float) -> None:
        """Adds to a manifest what is known when the work is done."""


class Engine:
    """Finds or makes the results of nodes. A subclass decides where `batches` runs a function.

    Attributes:
        batch_size: Most rows of a batch, where a function sees only a part of the batches in each of its calls; None
            where it sees all of them, one after another.
    """

    batch_size: int | None = None
    _results: Results
    _progress: Progress

    def open(self, results: Results, progress: Progress, enter: Callable[[], None]) -> None:
        """Called when a session starts.

        Args:
            results: Where the session's results are.
            progress: Where work in progress is shown.
            enter: What another process calls before it works for this session; it can be pickled.
        """
        self._results = results
        self._progress = progress

    def close(self) -> None:
        """Called when the session ends."""

    def run(self, work: Work) -> Outcome:
        """Finds the result of a node, or makes it; the node's `build` runs in this process."""
        wanted = work.wanted
        outcome: Outcome | None = None if wanted.force else self._results.find(wanted)
        if outcome is None:

            def build(draft: Path) -> Outcome:
                logger.debug('running "%s"', wanted.name)
                started = time.monotonic()
                with counting(work.usage), self._progress.show(wanted.name, work.usage, work.progress_interval):
                    made = work.build(draft)
                    if isinstance(made, Kept):
                        work.complete(made.manifest, time.monotonic() - started)
                return made

            outcome = self._results.make(wanted, build)
        if isinstance(outcome, Kept):
            if not outcome.found:
                current_usage().absorb(work.usage)
            _log(wanted.name, outcome, work.usage)
        return outcome

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to batches and yields what it yields, in the batches' order.

        Args:
            process: A function of some of the batches, one after another; it keeps nothing from one call to the next.
            batches: The batches.
            what: Whose function it is, for messages.
            parts: What the function refers to, by name, for messages.

        Raises:
            DefinitionError: The function, or one of its parts, cannot be sent to where it would run.
        """
        raise NotImplementedError(f"{type(self).__name__} does not run batches.")


class LocalEngine(Engine):
    """Runs everything in the script's own process."""

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to all batches, as far as its results are read."""
        return process(iter(batches))


def _log(name: str, kept: Kept, usage: Usage) -> None:
    manifest = kept.manifest
    rows = [f"{manifest.rows:,} rows"] if manifest.rows is not None else []
    if kept.found:
        logger.info("%s: %s", name, ", ".join(["found finished", *rows]))
        return
    parts = [*rows, duration(manifest.card.get("seconds", 0.0)), *describe_usage(usage)]
    logger.info("%s: done, %s", name, ", ".join(parts))
    if usage.failed_rows:
        index, message = next(iter(sorted(usage.failures.items())))
        logger.warning(
            "%s: %s of its rows failed and have no value; the first is row %s: %s",
            name, f"{usage.failed_rows:,}", index, message,
        )  # fmt: skip
