"""A threshold keeps its guarantee: over many draws of rows from known distributions, the true error is rarely above."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset
from datadreamer_like.evaluation import fit_threshold, rows_needed

Errors = Callable[[Any], Any]

# Error rates by score, a uniform number of 0 to 1; the last two are above the bound at the top, or only in the middle.
SHAPES: dict[str, Errors] = {
    "falling": lambda s: 0.3 * (1 - s) ** 2,
    "at the bound": lambda s: np.full_like(s, 0.05),
    "confidently wrong": lambda s: np.where(s > 0.95, 0.2, np.where(s > 0.5, 0.01, 0.3)),
    "wrong in the middle": lambda s: np.where((s > 0.4) & (s < 0.6), 0.4, 0.02),
}


def true_error(errors: Errors, threshold: float) -> float:
    """The error rate among scores above a threshold, by a fine grid."""
    grid = np.linspace(max(threshold, 0.0), 1.0, 20_001)
    return float(errors(grid).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [90, 300, 1200])
def test_bound_is_broken_in_at_most_the_promised_share_of_draws(shape: str, rows: int):
    random, errors, draws, broken = np.random.default_rng(rows), SHAPES[shape], 400, 0
    for _ in range(draws):
        scores = random.random(rows)
        found = fit_threshold(scores, random.random(rows) >= errors(scores), max_error=0.05, confidence=0.9)
        # To the grid's resolution, the error rate "at the bound" is the bound itself, which is not above it.
        broken += math.isfinite(found.log_odds) and true_error(errors, found.log_odds) > 0.05 + 1e-9
    assert binomtest(broken, draws, 0.1, alternative="greater").pvalue > 1e-3, broken


def test_threshold_at_an_error_above_the_bound_is_accepted_no_more_often_than_promised():
    random, draws, answered = np.random.default_rng(0), 600, 0
    for _ in range(draws):
        scores = random.random(400)
        found = fit_threshold(scores, random.random(400) >= 0.0500001, max_error=0.05, confidence=0.9)
        answered += found.answered > 0
    assert binomtest(answered, draws, 0.1, alternative="greater").pvalue > 1e-3
    assert answered > 0.03 * draws  # nor so rarely that the test would be vain


def test_more_rows_give_more_coverage_up_to_what_is_possible():
    random, coverages = np.random.default_rng(1), []
    for rows in (200, 1000, 20_000):
        found = [
            fit_threshold(s, random.random(rows) >= SHAPES["falling"](s), max_error=0.05).coverage
            for s in random.random((10, rows))
        ]
        coverages.append(np.mean(found))
    assert coverages == sorted(coverages)
    # The mean of 0.3 (1 - s)² above t is 0.1 (1 - t)², which is 0.05 at 1 - t = 0.707, and with the margin of a
    # one-sided test on 14,000 rows, 1.645 √(0.05 · 0.95 / 14,000) = 0.003, 0.047 at 0.686.
    assert coverages[-1] == pytest.approx(0.686, abs=0.01)


@pytest.mark.parametrize(
    ("max_error", "confidence"), [(0.02, 0.95), (0.05, 0.95), (0.1, 0.9), (0.5, 0.8), (0.01, 0.99)]
)
def test_rows_needed_are_the_fewest_that_can_pass_without_an_error(max_error: float, confidence: float):
    needed = rows_needed(max_error, confidence)
    assert binom.cdf(0, needed, max_error) <= 1 - confidence < binom.cdf(0, needed - 1, max_error)
    scores, options = np.arange(needed), {"max_error": max_error, "confidence": confidence}
    found = fit_threshold(scores, np.ones(needed, bool), **options)
    assert (found.log_odds, found.coverage, found.errors) == (-math.inf, 1.0, 0)
    with pytest.raises(DataError, match=f"There are {needed - 1} rows, and at least {needed} are needed"):
        fit_threshold(scores[1:], np.ones(needed - 1, bool), **options)


def test_the_chosen_rows_meet_the_clopper_pearson_bound():
    random = np.random.default_rng(5)
    scores = random.random(1000)
    found = fit_threshold(scores, random.random(1000) >= SHAPES["falling"](scores), max_error=0.05)
    above = scores > found.log_odds
    assert found.answered == above.sum() > 0
    upper = beta.ppf(0.95, found.errors + 1, found.answered - found.errors)
    assert upper <= 0.05
    assert found.rows == 1000


def test_equal_scores_are_answered_together():
    scores = np.repeat([3.0, 2.0, 1.0], 200)
    right = np.repeat([True, True, False], 200)
    found = fit_threshold(scores, right, max_error=0.05)
    assert (found.log_odds, found.answered) == (1.0, 400)
    random = np.random.default_rng(2)
    order = random.permutation(600)
    assert fit_threshold(scores[order], right[order], max_error=0.05) == found


def test_model_that_is_never_right_answers_nothing():
    found = fit_threshold(np.arange(500), np.zeros(500, bool))
    assert (found.log_odds, found.coverage, found.probability) == (math.inf, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_threshold([], []), EmptyDataset, "no rows"),
        (lambda: fit_threshold([1.0], [True, False]), DataError, "must be"),
        (lambda: fit_threshold([math.nan] * 200, [True] * 200), DataError, "without NaN"),
        (lambda: fit_threshold(["sure"] * 200, [True] * 200), DataError, "must be one number for each row"),
        (lambda: fit_threshold([1.0], [True], max_error=0), DefinitionError, "max_error is 0;"),
        (lambda: fit_threshold([1.0], [True], confidence=95), DefinitionError, "confidence is 95;"),
        (lambda: rows_needed(confidence=1.0), DefinitionError, "confidence is 1.0;"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "correct",
    [["False"] * 200, [""] * 200, [math.nan] * 200, [None] * 200, [2] * 200, [0.5] * 200, [-1] * 200],
    ids=str,
)
def test_an_answer_is_right_or_wrong_and_nothing_else(correct: list[Any]):
    with pytest.raises(DataError, match="must be True or False, or 1 or 0"):
        fit_threshold(np.arange(200.0), correct)


@pytest.mark.parametrize("kind", [bool, int, float])
def test_ones_and_zeros_are_right_and_wrong_answers(kind: type):
    right = [row % 7 > 0 for row in range(200)]
    assert fit_threshold(range(200), [kind(each) for each in right]) == fit_threshold(range(200), right)
