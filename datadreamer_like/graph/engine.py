"""Where work on batches of rows runs: in the script's own process, or where a subclass sends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

B = TypeVar("B")
R = TypeVar("R")


class Engine:
    """Applies functions to batches of rows in the script's own process.

    Attributes:
        batch_size: Most rows of a batch, where a function sees only a part of the batches in each of its calls; None
            where it sees all of them, one after another.
    """

    batch_size: int | None = None

    def open(self, enter: Callable[[], None]) -> None:
        """Called when a session starts. Another process calls `enter`, which can be pickled, before it works for it."""

    def close(self) -> None:
        """Called when the session ends."""

    def batches(
        self, process: Callable[[Iterator[B]], Iterator[R]], batches: Iterable[B], what: str, parts: Mapping[str, Any]
    ) -> Iterator[R]:
        """Applies a function to batches, as far as its results are read, and yields these in the batches' order.

        Args:
            process: A function of some of the batches, one after another; it keeps nothing from one call to the next.
            batches: The batches.
            what: Whose function it is, for messages.
            parts: What the function refers to, by name, for messages.

        Raises:
            DefinitionError: The function, or one of its parts, cannot be sent to where it would run.
        """
        return process(iter(batches))
