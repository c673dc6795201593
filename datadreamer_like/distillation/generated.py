"""Answers that a model writes for an objective: the teacher once, before training, or the student while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from datadreamer_like.errors import check_number


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
        check_number(self.size, "beam_size", 1, whole=True)
        check_number(self.max_new_tokens, "max_new_tokens", 1, whole=True)


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
        check_number(self.fraction, "fraction", 0, 1)
        check_number(self.max_new_tokens, "max_new_tokens", 1, whole=True)
