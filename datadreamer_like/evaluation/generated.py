"""Scores of generated answers: exact match, ROUGE-L, and the win rate of one answer over another."""

from __future__ import annotations

from collections.abc import Sequence

from datadreamer_like.errors import DataError, EmptyDataset
from datadreamer_like.models.words import words_of


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of answers that are their references, but for white space at the ends.

    Raises:
        EmptyDataset, DataError: There are no answers; or there are fewer or more references.

    Example:
        >>> exact_match(["yes ", "No"], ["yes", "no"])
        0.5
    """
    _check(answers, references)
    return sum(a.strip() == b.strip() for a, b in zip(answers, references, strict=True)) / len(answers)


def rouge_l(answer: str, reference: str) -> float:
    """Returns ROUGE-L, the F1 of the longest common subsequence of words; 0 if one of the texts has no word.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", with equal weights of precision and recall.
    Words are runs of letters and digits in lower case, without stemming, or single Chinese and Japanese characters.

    Example:
        >>> rouge_l("The cat sat down.", "the cat sat on the mat")  # 3 words of 4, and of 6
        0.6
    """
    first, second = (words_of(text.lower()) for text in (answer, reference))
    common = _common(first, second)
    return 2 * common / (len(first) + len(second)) if common else 0.0


def win_rate(scores: Sequence[float], others: Sequence[float]) -> float:
    """Returns the share of rows whose score is above the other one; ties count half.

    Scores are those of two answers to the same prompts: log-likelihoods, rewards, or points that a judge gave.

    Raises:
        EmptyDataset, DataError: There are no rows; or lengths differ.

    Example:
        >>> win_rate([3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 3.0, -1.0])
        0.625
    """
    _check(scores, others)
    return sum((a > b) + 0.5 * (a == b) for a, b in zip(scores, others, strict=True)) / len(scores)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for position, other in enumerate(second, 1):
            here = lengths[position]
            lengths[position] = before + 1 if word == other else max(here, lengths[position - 1])
            before = here
    return lengths[-1]


def _check(values: Sequence[object], others: Sequence[object]) -> None:
    if len(values) != len(others):
        raise DataError(f"There are {len(values):,} values and {len(others):,} to compare with. Pass one for each.")
    if not values:
        raise EmptyDataset("There are no rows to score.")
