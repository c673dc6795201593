"""Accuracy and macro-F1 of classifiers, and their differences between two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datadreamer_like.report import Interval

from .bootstrap import Weights, paired_bootstrap


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Returns the share of rows whose prediction is their label."""
    return float(_Score(truth, predicted).accuracy(np.ones((1, len(truth))))[0])


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Returns the unweighted mean F1 score over the classes that occur among the labels."""
    return float(_Score(truth, predicted).macro_f1(np.ones((1, len(truth))))[0])


def macro_f1_of_counts(hits: Weights, predicted: Weights, wanted: Weights) -> Weights:
    """Returns the macro-F1 from counts of rows; classes without rows are left out of the mean.

    Args:
        hits: Correctly predicted rows of each class [..., classes].
        predicted: Rows predicted as each class [..., classes].
        wanted: Rows labelled with each class [..., classes].
    """
    scores = 2 * hits / np.maximum(predicted + wanted, 1e-12)
    present = wanted > 0
    mean: Weights = (scores * present).sum(-1) / np.maximum(present.sum(-1), 1)
    return mean


def paired_differences(
    truth: Sequence[str],
    first: Sequence[str],
    other: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Returns the score differences between two models on the same rows, `other - first`, with intervals.

    For the intervals see `evaluation.bootstrap.paired_bootstrap`.

    Args:
        truth: Labels [rows].
        first: Predictions of the first model [rows].
        other: Predictions of the other model [rows].
        resamples: Number of resamples.
        seed: Seed of the resampling.
        level: Confidence level of the intervals.

    Returns:
        Differences in "accuracy" and "macro_f1".
    """
    # Rows with the same label and the same two predictions are interchangeable, so only their counts are resampled.
    kinds = Counter(zip(truth, first, other, strict=True))
    truths, firsts, others = (list(part) for part in zip(*kinds, strict=True))
    better, worse = _Score(truths, others), _Score(truths, firsts)

    def differences(weights: Weights) -> dict[str, Weights]:
        return {
            "accuracy": better.accuracy(weights) - worse.accuracy(weights),
            "macro_f1": better.macro_f1(weights) - worse.macro_f1(weights),
        }

    counts = np.array(list(kinds.values()), dtype=np.float64)
    return paired_bootstrap(differences, counts, resamples=resamples, seed=seed, level=level)


class _Score:
    """Scores one model's predictions under many row weightings at once: weights [weightings, rows]."""

    def __init__(self, truth: Sequence[str], predicted: Sequence[str]) -> None:
        classes = np.unique(np.asarray(truth))
        self.is_class = (np.asarray(truth)[:, None] == classes).astype(np.float64)
        self.is_said = (np.asarray(predicted)[:, None] == classes).astype(np.float64)
        self.is_hit = self.is_class * self.is_said

    def accuracy(self, weights: Weights) -> Weights:
        hits: Weights = weights @ self.is_hit.sum(1) / weights.sum(1)
        return hits

    def macro_f1(self, weights: Weights) -> Weights:
        return macro_f1_of_counts(weights @ self.is_hit, weights @ self.is_said, weights @ self.is_class)
