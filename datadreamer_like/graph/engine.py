"""Where work on batches of rows runs: in the script's own process, or where a subclass sends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

B = TypeVar("B")
R = TypeVar("R")


class Engine:
    """Applies functions to batches of rows in the script's own process."""

    batch_size: int | None = None
    """Most rows of a batch, where a function sees a part of the batches in each call; None where it sees them all."""

    def open(self, enter: Callable[[], None]) -> None:
        """Called when a session starts. Another process calls `enter`, which can be pickled, before it works for it."""

    def close(self) -> None:
        """Called when the session ends."""

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to batches, as far as its results are read, and yields these in the batches' order.

        `process` takes some of the batches, one after another, and keeps nothing from one call to the next. `what` says
        whose function it is, and `parts` what it refers to, by name, for messages.
        """
        return process(iter(batches))
