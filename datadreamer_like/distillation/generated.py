"""Answers that a model writes for an objective: the teacher once, before training, or the student while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from datadreamer_like.errors import DefinitionError


@dataclass(frozen=True)
class Beams:
    """How the teacher answers each prompt before training: by beam search, at most `max_new_tokens` tokens.

    Attributes:
        size: Number of beams; 1 is greedy decoding.
        candidates: Number of beams that the objective chooses from, at most `size`.
        max_new_tokens: Maximum length of an answer in the teacher's tokens.
        needs_reference: Whether rows need references, to choose a candidate or to learn them too.
        keep_reference: Whether the student also learns the reference, in the same batch. The batch then has the rows
            with their references first, and again with the teacher's answers, for which the bool `written` is True.
    """

    size: int
    candidates: int
    max_new_tokens: int
    needs_reference: bool = False
    keep_reference: bool = False

    def __post_init__(self) -> None:
        check_count("beam_size", self.size)
        check_count("max_new_tokens", self.max_new_tokens)


@dataclass(frozen=True)
class Completions:
    """How the answers in training batches are replaced by the student's own.

    Attributes:
        fraction: Probability that a batch is replaced, from 0 to 1.
        max_new_tokens: Maximum length of a completion in tokens; the trainer's `max_length` limits it too.
        temperature: Temperature of sampling, above 0.
    """

    fraction: float
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        if not isinstance(self.fraction, int | float) or not 0 <= self.fraction <= 1:
            raise DefinitionError(
                f"fraction is {self.fraction!r}; it is the share of batches that the student samples, from 0 to 1."
            )
        check_count("max_new_tokens", self.max_new_tokens)


def check_count(name: str, value: object) -> None:
    """Raises `DefinitionError` if an option is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise DefinitionError(f"{name} is {value!r}; it must be a whole number of at least 1.")
