"""Temperatures are where the loss is least, and calibration errors are those of the definition, counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, LabelError
from datadreamer_like.evaluation import (
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
    reliability,
)

RANDOM = np.random.default_rng(3)


def drawn(rows: int, classes: int, temperature: float) -> tuple[Any, Any]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    logits = RANDOM.normal(size=(rows, classes)) * 3
    chances = softmax(logits / temperature, axis=1)
    return logits, np.array([RANDOM.choice(classes, p=row) for row in chances])


@pytest.mark.parametrize(("classes", "temperature"), [(2, 0.5), (3, 1.0), (7, 2.5)])
def test_temperature_is_where_the_likelihood_is_largest(classes: int, temperature: float):
    logits, labels = drawn(4000, classes, temperature)

    def loss(t: float) -> float:
        return -float(log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(best, rel=1e-5)
    assert found == pytest.approx(temperature, rel=0.1)  # the one that the labels were drawn by, within sampling error


def test_temperature_scales_with_the_logits_and_calibrates():
    logits, labels = drawn(4000, 5, 2.0)
    assert fit_temperature(10 * logits, labels) == pytest.approx(10 * fit_temperature(logits, labels))
    before = expected_calibration_error(softmax(logits, axis=1), labels)
    after = expected_calibration_error(softmax(logits / fit_temperature(logits, labels), axis=1), labels)
    assert after < 0.03 < before


def test_temperature_has_limits_where_there_is_no_minimum():
    right = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(right, [0, 1]) == 0.01
    assert fit_temperature(right, [1, 0]) == 100.0


def test_each_class_of_a_multi_label_model_has_its_own_temperature():
    logits = RANDOM.normal(size=(3000, 3)) * 3
    wanted = RANDOM.random((3000, 3)) < 1 / (1 + np.exp(-logits / np.array([0.5, 1.0, 3.0])))
    found = fit_temperatures(logits, wanted)
    for column, temperature in enumerate(found):
        z, y = logits[:, column], wanted[:, column]

        def loss(t: float, z: Any = z, y: Any = y) -> float:
            return float(log_loss(y, 1 / (1 + np.exp(-z / t))))

        assert temperature == pytest.approx(
            minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x, rel=1e-4
        )


def by_hand(confidence: list[float], right: list[bool], bins: int) -> float:
    """The definition in words: bins (m / M, (m + 1) / M], weighted gaps."""
    total = 0.0
    for index in range(bins):
        inside = [
            row
            for row, value in enumerate(confidence)
            if index / bins < value <= (index + 1) / bins or (index == 0 and value == 0)
        ]
        if inside:
            gap = np.mean([right[row] for row in inside]) - np.mean([confidence[row] for row in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_weighted_gap_of_the_bins(bins: int):
    chances = RANDOM.dirichlet(np.ones(4), size=501)
    chances[:3] = [[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.5, 0, 0]]  # on the edges of bins
    labels = RANDOM.integers(0, 4, 501)
    right = [bool(row) for row in chances.argmax(1) == labels]
    found = expected_calibration_error(chances, labels, bins=bins)
    assert found == pytest.approx(by_hand(list(chances.max(1)), right, bins), abs=1e-12)


def test_multi_label_calibration_error_is_the_mean_over_classes():
    chances = RANDOM.random((300, 3))
    wanted = RANDOM.random((300, 3)) < chances**2
    by_class = [by_hand(list(chances[:, column]), list(wanted[:, column]), 15) for column in range(3)]
    assert expected_calibration_error(chances, wanted.astype(int)) == pytest.approx(np.mean(by_class), abs=1e-12)


def test_adaptive_bins_have_equal_numbers_of_rows():
    chances = RANDOM.dirichlet(np.ones(3), size=100)
    labels = RANDOM.integers(0, 3, 100)
    found = reliability(chances, labels, bins=10, adaptive=True)
    assert [part.rows for part in found] == [10] * 10
    order = np.argsort(chances.max(1))
    gaps = [
        abs((chances.argmax(1) == labels)[part].mean() - chances.max(1)[part].mean()) for part in order.reshape(10, 10)
    ]
    assert expected_calibration_error(chances, labels, bins=10, adaptive=True) == pytest.approx(np.mean(gaps))


def test_reliability_lists_the_bins_that_have_rows():
    low, high = reliability([[0.6, 0.4], [0.6, 0.4], [0.95, 0.05]], [0, 1, 0], bins=10)
    assert (low.low, low.high, low.rows, low.confidence, low.accuracy) == pytest.approx((0.5, 0.6, 2, 0.6, 0.5))
    assert (high.rows, high.accuracy) == (1, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_temperature(np.empty((0, 2)), []), EmptyDataset, "no rows"),
        (lambda: fit_temperature([1.0, 2.0], [0, 1]), DataError, r"shape \(2,\).*\[rows, classes\]"),
        (lambda: fit_temperature([[1.0, np.nan]], [0]), DataError, "row 0 that is not finite"),
        (lambda: fit_temperature([[1.0, 2.0]], [0, 1]), DataError, r"must be \[rows\]"),
        (lambda: fit_temperature([[1.0, 2.0]], [2]), LabelError, "2 in row 0; the 2 classes"),
        (lambda: fit_temperature([[1.0, 2.0]], [0.0]), LabelError, "whole numbers"),
        (lambda: fit_temperatures([[1.0, 2.0]], [[0, 2]]), LabelError, "0 or 1"),
        (lambda: fit_temperatures([[1.0, 2.0]], [0]), DataError, r"\[rows, classes\]"),
        (lambda: expected_calibration_error([[1.5, 0.0]], [0]), DataError, "outside 0 to 1"),
        (lambda: expected_calibration_error([[0.5, 0.5]], [0], bins=0), DefinitionError, "bins is 0"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


def test_logits_that_are_all_equal_leave_the_temperature_at_one():
    assert fit_temperature([[0.1, 0.1, 0.1]] * 5, [0, 1, 2, 0, 1]) == 1.0
    assert fit_temperature(np.zeros((3, 2)), [0, 1, 1]) == fit_temperature([[0.3]] * 5, [0] * 5) == 1.0
    assert fit_temperatures([[0.0]] * 4, [[1], [0], [1], [0]]) == [1.0]
    assert fit_temperature([[2.0, 0.0]] * 5, [0] * 5) == pytest.approx(0.01)


def test_the_adaptive_error_does_not_depend_on_the_order_of_rows_of_equal_confidence():
    rows = [[0.75, 0.25]] * 60 + [[0.9, 0.1]] * 30
    labels = [0] * 45 + [1] * 15 + [0] * 27 + [1] * 3
    assert expected_calibration_error(rows, labels, adaptive=True) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(rows[::-1], labels[::-1], bins=7, adaptive=True) == pytest.approx(0.0, abs=1e-12)
