"""What the engine of batches needs of a provider's batch API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..llms.generation import Answer, Request, Sampling

_GROWTH, _LONGEST_SECONDS = 1.5, 60.0


@dataclass(frozen=True)
class BatchLimits:
    """The most rows and bytes that a provider takes in one batch."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class BatchState:
    """What a provider reports of a batch.

    Attributes:
        status: In the provider's word.
        done: Rows that are processed.
        ended: Whether no further row is going to be processed.
        cancelled: Whether somebody cancelled it.
        failure: Why none of its rows was processed; "" if they were.
        queue_full: Whether that is only because too much was waiting at the provider.
    """

    status: str
    done: int = 0
    ended: bool = False
    cancelled: bool = False
    failure: str = ""
    queue_full: bool = False


@dataclass(frozen=True)
class LineResult:
    """The result of one line of a batch: a `reply` as the SDK gives it, an `error`, or neither if not processed."""

    custom_id: str
    reply: Any = None
    error: Exception | None = None


class RefusedLine(Exception):
    """The error of one line, with the attributes of an SDK's exception."""

    def __init__(self, status_code: int, body: Any) -> None:
        details = body.get("error", body) if isinstance(body, dict) else body
        super().__init__(str(details))
        self.status_code = status_code
        self.body = details
        for name in ("code", "type", "param"):
            setattr(self, name, details.get(name) if isinstance(details, dict) else None)


Once = Callable[[str, Callable[[], Any], Callable[[], Any]], str]
"""Sends a request once, though it may be killed: `once(what, find, send)` returns the id; see `sent_once`."""


class BatchAPI(ABC):
    """One provider's batch API; it calls the SDK's synchronous client, and lets its exceptions pass.

    A line asks for at least one of the `n` answers to a request, and has a `custom_id` that no other line has.
    """

    limits: BatchLimits
    poll_seconds: float = 0.5
    """Seconds between the first two looks at a batch; each pause is half as long again as the last, up to a minute."""
    body_name: str = "body"
    """What a line calls the body of its request."""

    def pauses(self) -> Iterator[float]:
        """Yields the seconds between looks at a batch, without end."""
        pause = self.poll_seconds
        while True:
            yield pause
            pause = min(_GROWTH * pause, _LONGEST_SECONDS)

    @abstractmethod
    def missing(self, replies: Sequence[Any], sampling: Sampling) -> int:
        """Returns how many of the `n` answers the replies so far do not have."""

    @abstractmethod
    def bodies(self, request: Request, replies: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the bodies of the lines that ask for the missing answers."""

    @abstractmethod
    def line(self, custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns a line of the file with the requests."""

    @abstractmethod
    def submit(self, file: Path, label: str, rows: int, once: Once) -> str:
        """Submits a file of lines as one batch, and returns its id; `label` is in the custom ids of its lines only."""

    @abstractmethod
    def poll(self, batch: str) -> BatchState:
        """Asks for the state of a batch."""

    @abstractmethod
    def download(self, batch: str, to: BinaryIO) -> None:
        """Writes the lines of results, in any order, to a file; raises `UnknownModel` if they are gone."""

    @abstractmethod
    def read(self, line: Any) -> LineResult:
        """Returns the result in a line, parsed as JSON; raises TypeError or KeyError for another line."""

    @abstractmethod
    def answer(self, replies: Sequence[Any], sampling: Sampling) -> Answer:
        """Returns the answer that replies hold, with tokens and cost; raises `MalformedAnswer`."""
