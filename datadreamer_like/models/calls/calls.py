"""What the pipeline needs of a kind of call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from datadreamer_like.errors import ModelError

from .failures import A, Rejected

P = TypeVar("P")
Q = TypeVar("Q")


class Calls(ABC, Generic[P, Q, A]):
    """One kind of call, for the pipeline: prompts P become requests Q, which get answers A."""

    has_paid: bool = False
    """Whether `paid` may find answers."""
    checks: bool = False
    """Whether `checked` may reject answers."""

    @abstractmethod
    def admit(self, prompts: Sequence[P]) -> tuple[list[bytes], list[Q]]:
        """Returns the key and the request of each prompt; requests with equal keys are sent once."""

    @abstractmethod
    def size(self, request: Q) -> int:
        """Returns a length for sorting requests into batches."""

    @abstractmethod
    def encode(self, answer: A) -> bytes:
        """Returns the stored form of an answer."""

    @abstractmethod
    def decode(self, value: bytes) -> A:
        """Reads a stored answer."""

    @abstractmethod
    def failed(self, error: ModelError) -> A:
        """Returns the answer of a failed row."""

    def paid(self, keys: Sequence[bytes], requests: Sequence[Q]) -> Sequence[A | None]:
        """Returns for each request the answer of a call that was paid for elsewhere, if there is one."""
        return [None] * len(keys)

    def checked(self, request: Q, answer: A) -> A | Rejected:
        """Returns an answer, or why it is rejected; only called if `checks`."""
        return answer

    def follow_up(self, key: bytes, request: Q, answer: A, reason: str) -> tuple[bytes, Q]:
        """Returns the key and the request of a follow-up to a rejected answer; only for runs with a `check`."""
        raise NotImplementedError(f"{type(self).__name__} has no follow-ups.")

    def rejected(self, answer: A, reason: str, cause: ModelError | None) -> A:
        """Returns the answer of a row that failed by rejection; `cause` is the error of a failed follow-up."""
        raise NotImplementedError(f"{type(self).__name__} has no rejected answers.")
