"""Calibration of classifiers: temperature scaling, expected calibration error, reliability by bins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datadreamer_like.errors import DataError, EmptyDataset, LabelError, check_number
from datadreamer_like.models.trained.predictions import probabilities as probabilities_of

Array = np.ndarray[Any, np.dtype[np.float64]]

LEAST, MOST = 0.01, 100.0
"""Limits of a fitted temperature."""
_HALVINGS = 60


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar probability: `low` < probability ≤ `high`.

    Attributes:
        low: Lower limit of the probabilities; the first bin includes it.
        high: Upper limit.
        rows: Number of predictions.
        confidence: Their mean probability.
        accuracy: Share of them that are right.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Returns the temperature T that minimises the mean negative log-likelihood of softmax(logits / T).

    Temperature scaling, Guo et al. 2017, arXiv:1706.04599. The loss is convex in 1/T, so bisection on the sign of its
    derivative finds the minimum; T is at least 0.01 and at most 100, the values where there is none, as when all
    rows are right, and 1 where all rows have equal logits, for which all T are the same. Dividing by T changes no row's
    most likely class. Fit it on rows that the model was not trained on.

    Args:
        logits: Logits of validation rows [rows, classes].
        labels: Positions of their classes [rows], integers.

    Raises:
        EmptyDataset: There are no rows.
        DataError: Shapes do not go together, or a logit is not finite.
        LabelError: A label is not the position of a class.

    Example:
        >>> fit_temperature([[4.0, 0.0]] * 3 + [[0.0, 4.0]], [0, 0, 1, 1])  # 3 of 4 right, at odds of e⁴ to 1
        3.64...
    """
    scores = _finite(logits, "logits")
    scores = scores - scores.max(1, keepdims=True)  # equal logits are exactly 0
    right = scores[np.arange(len(scores)), _positions(labels, scores)]

    def slope(beta: float) -> float:
        return float(((probabilities_of(beta * scores, False) * scores).sum(1) - right).mean())

    return _temperature(slope)


def fit_temperatures(logits: ArrayLike, labels: ArrayLike) -> list[float]:
    """Returns the temperature of each class of a multi-label classifier, whose probabilities are sigmoid(logits / T).

    Args:
        logits: Logits of validation rows [rows, classes].
        labels: 1 or True where a row has a class [rows, classes].

    Raises:
        EmptyDataset, DataError, LabelError: See `fit_temperature`.
    """
    scores = _finite(logits, "logits")
    wanted = _indicators(labels, scores)

    def slope(column: int) -> Any:
        z, y = scores[:, column], wanted[:, column]
        return lambda beta: float((z * (probabilities_of(beta * z, True) - y)).mean())

    return [_temperature(slope(column)) for column in range(scores.shape[1])]


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, adaptive: bool = False
) -> float:
    """Returns the expected calibration error: how far probabilities are from the share of right answers.

    Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599: the mean over bins of |accuracy - confidence|, weighted by
    their rows, where the confidence is the probability of the most likely class. For a multi-label classifier it is
    the mean over classes of the error of that class's probabilities. Few rows a bin overestimate it.

    Args:
        probabilities: Probabilities [rows, classes].
        labels: Positions of the right classes [rows]; or, multi-label, 1 or True where a row has a class
            [rows, classes].
        bins: Number of bins.
        adaptive: Bins of equal numbers of rows instead of equal width (Nixon et al. 2019, arXiv:1904.01685).

    Returns:
        A share, 0 for perfect calibration and at most 1.

    Raises:
        EmptyDataset, DataError, LabelError: See `fit_temperature`; or a probability is outside 0 to 1.
        DefinitionError: `bins` is less than 1.

    Example:
        >>> expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1])
        0.0
    """
    total, errors = 0, 0.0
    for confidence, right in _events(probabilities, labels):
        errors += sum(
            part.rows * abs(part.accuracy - part.confidence) for part in _bins(confidence, right, bins, adaptive)
        )
        total += len(confidence)
    return errors / total


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, adaptive: bool = False
) -> list[ReliabilityBin]:
    """Returns the bins of a reliability diagram that have rows, lowest probabilities first.

    For the arguments and errors see `expected_calibration_error`; the classes of a multi-label classifier are pooled.
    """
    events = list(_events(probabilities, labels))
    confidence, right = (np.concatenate(part) for part in zip(*events, strict=True))
    return _bins(confidence, right, bins, adaptive)


def _temperature(slope: Any) -> float:
    """Returns 1/beta where `slope`, the derivative of a convex loss in beta, is zero; else a limit."""
    low, high = np.log(1 / MOST), np.log(1 / LEAST)
    if slope(np.exp(high)) == slope(np.exp(low)) == 0:
        return 1.0
    if slope(np.exp(high)) <= 0:
        return LEAST
    if slope(np.exp(low)) >= 0:
        return MOST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(np.exp(middle)) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def _events(probabilities: ArrayLike, labels: ArrayLike) -> Iterator[tuple[Array, Array]]:
    """Yields probabilities of events [rows], and whether each happened [rows]: one pair, or one per class."""
    found = _finite(probabilities, "probabilities")
    if found.min() < 0 or found.max() > 1:
        raise DataError("probabilities has values outside 0 to 1. Pass probabilities, not logits: model.predict(...).")
    if np.ndim(labels) == 2:
        yield from zip(found.T, _indicators(labels, found).T, strict=True)
    else:
        right = found.argmax(1) == _positions(labels, found)
        yield found.max(1), right.astype(np.float64)


def _bins(confidence: Array, right: Array, bins: int, adaptive: bool) -> list[ReliabilityBin]:
    check_number(bins, "bins", 1, whole=True)
    if adaptive:
        # Rows of equal confidence may be in two bins: each counts as their mean, in any order.
        _, same = np.unique(confidence, return_inverse=True)
        right = (np.bincount(same, right) / np.bincount(same))[same]
        order = np.argsort(confidence, kind="stable")
        parts = [part for part in np.array_split(order, bins) if len(part)]
        limits = [(float(confidence[part].min()), float(confidence[part].max())) for part in parts]
    else:
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        parts = [np.flatnonzero(place == index) for index in range(bins)]
        limits = [(index / bins, (index + 1) / bins) for index in range(bins)]
    return [
        ReliabilityBin(low, high, len(part), float(confidence[part].mean()), float(right[part].mean()))
        for part, (low, high) in zip(parts, limits, strict=True)
        if len(part)
    ]


def _finite(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.size == 0:
        raise EmptyDataset(f"{name} has no rows. Pass those of held-out rows.")
    if found.ndim != 2:
        raise DataError(f"{name} has the shape {found.shape}; it must be [rows, classes].")
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise DataError(f"{name} has a value in row {row} that is not finite. Check the model, or leave the row out.")
    return found


def _positions(labels: ArrayLike, scores: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = np.asarray(labels)
    if found.shape != scores.shape[:1]:
        raise DataError(f"labels has the shape {found.shape}; it must be [rows], here ({len(scores)},).")
    if found.dtype.kind not in "iub":
        raise LabelError(f"labels must be positions of classes, whole numbers; they are of type {found.dtype}.")
    outside = (found < 0) | (found >= scores.shape[1])
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise LabelError(f"labels has {found[row]} in row {row}; the {scores.shape[1]} classes are numbered from 0.")
    return found.astype(np.int64)


def _indicators(labels: ArrayLike, scores: Array) -> Array:
    found = np.asarray(labels, dtype=np.float64)
    if found.shape != scores.shape:
        raise DataError(f"labels has the shape {found.shape}; it must be [rows, classes], here {scores.shape}.")
    if not np.isin(found, (0.0, 1.0)).all():
        raise LabelError("labels of a multi-label classifier must be 0 or 1 for each row and class.")
    return found
