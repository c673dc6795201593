"""Scores against scikit-learn and by hand, intervals against a plain bootstrap of rows and planted differences."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from datadreamer_like.evaluation import quality
from datadreamer_like.evaluation.quality import (
    bits_per_byte,
    paired_bits_per_byte,
    paired_differences,
    perplexity,
    scores,
    token_loss,
)
from datadreamer_like.report import Interval


def _rows(count: int, right_first: float, right_other: float, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Rows of four uneven classes; both models are right on a shared core, then each on its own share."""
    random = np.random.default_rng(seed)
    truth = random.choice(["a", "b", "c", "d"], size=count, p=[0.5, 0.3, 0.15, 0.05])
    hard = random.random(count)
    predictions = []
    for right in (right_first, right_other):
        noise = hard + 0.2 * random.standard_normal(count)
        wrong = random.choice(["a", "b", "c", "d", "e"], size=count)
        predictions.append(np.where(noise < right, truth, wrong).tolist())
    return truth.tolist(), predictions[0], predictions[1]


def _macro_f1(truth: np.ndarray, said: np.ndarray) -> float:
    classes = np.unique(truth)
    hits = [np.sum((truth == name) & (said == name)) for name in classes]
    return float(
        np.mean([2 * h / (np.sum(truth == c) + np.sum(said == c)) for h, c in zip(hits, classes, strict=True)])
    )


def test_scores_are_those_of_scikit_learn():
    truth, first, _ = _rows(301, 0.6, 0.6, seed=1)
    assert scores(truth, first)["accuracy"] == pytest.approx(accuracy_score(truth, first))
    expected = f1_score(truth, first, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert scores(truth, first)["macro_f1"] == pytest.approx(expected)


def test_intervals_are_those_of_a_plain_bootstrap_of_rows():
    truth, first, other = (np.array(column) for column in _rows(240, 0.7, 0.6, seed=2))
    random = np.random.default_rng(5)
    drawn: dict[str, list[float]] = {"accuracy": [], "macro_f1": []}
    for _ in range(1000):
        rows = random.integers(0, len(truth), len(truth))
        scores = [_macro_f1(truth[rows], said[rows]) for said in (first, other)]
        drawn["macro_f1"].append(scores[1] - scores[0])
        drawn["accuracy"].append(np.mean(truth[rows] == other[rows]) - np.mean(truth[rows] == first[rows]))
    found = paired_differences(truth.tolist(), first.tolist(), other.tolist(), resamples=20_000)
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        # Two bootstraps differ by chance: quantiles of 1,000 draws stand within about a tenth of a deviation.
        tolerance = 0.25 * np.std(values)
        assert found[name].low == pytest.approx(low, abs=tolerance)
        assert found[name].high == pytest.approx(high, abs=tolerance)


def test_interval_covers_a_planted_difference_as_often_as_it_says():
    planted = _rows(100_000, 0.70, 0.63, seed=3)
    worse, better = (scores(planted[0], said) for said in planted[1:])
    expected = {name: better[name] - worse[name] for name in better}
    covered = {"accuracy": 0, "macro_f1": 0}
    trials = 100
    for trial in range(trials):
        found = paired_differences(*_rows(300, 0.70, 0.63, seed=100 + trial), resamples=400, seed=trial)
        for name, interval in found.items():
            covered[name] += interval.low <= expected[name] <= interval.high
    # 95 % of 100 trials, less four deviations of chance.
    assert all(count >= 0.95 * trials - 4 * np.sqrt(trials * 0.95 * 0.05) for count in covered.values())


def test_difference_is_other_minus_first_and_inside_its_interval():
    truth, first, other = _rows(500, 0.8, 0.5, seed=4)
    found = paired_differences(truth, first, other)
    for name, interval in found.items():
        assert interval.value == pytest.approx(scores(truth, other)[name] - scores(truth, first)[name])
    for interval in found.values():
        assert interval.low < interval.value < interval.high < 0


def test_models_that_say_the_same_differ_by_nothing():
    truth, first, _ = _rows(50, 0.6, 0.6, seed=5)
    assert paired_differences(truth, first, first) == {
        "accuracy": Interval(0.0, 0.0, 0.0),
        "macro_f1": Interval(0.0, 0.0, 0.0),
    }


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    rows = _rows(80, 0.7, 0.6, seed=6)
    assert paired_differences(*rows, seed=1) == paired_differences(*rows, seed=1)
    assert paired_differences(*rows, seed=1, resamples=300) != paired_differences(*rows, seed=2, resamples=300)


def test_pairing_makes_the_interval_narrower_than_independent_rows_would():
    truth, first, other = _rows(400, 0.7, 0.68, seed=7)
    paired = paired_differences(truth, first, other)["accuracy"]
    right = [np.mean(np.array(truth) == np.array(said)) for said in (first, other)]
    independent = 2 * 1.96 * np.sqrt(sum(p * (1 - p) / len(truth) for p in right))
    assert paired.high - paired.low < independent


def _losses(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of texts of very different length under two models, and the texts' bytes."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 400, count)
    hard = random.gamma(4, 0.2, count)
    return sizes * hard, sizes * (hard + 0.05 * random.standard_normal(count) + 0.02), sizes


def test_bits_per_byte_weighs_texts_by_their_length():
    assert bits_per_byte([8 * np.log(2), 2 * np.log(2)], [8, 2]) == pytest.approx(1)
    assert bits_per_byte([8 * np.log(2), 0], [1, 7]) == pytest.approx(1)
    assert token_loss([3.0, 1.0], [1, 3]) == 1
    assert perplexity(np.log(5)) == pytest.approx(5)
    assert np.isfinite(perplexity(1e4))


def test_interval_of_bits_per_byte_is_that_of_a_plain_bootstrap_of_rows():
    first, other, sizes = _losses(200, seed=8)
    random = np.random.default_rng(9)
    drawn = []
    for _ in range(2000):
        rows = random.integers(0, len(sizes), len(sizes))
        drawn.append((other[rows].sum() - first[rows].sum()) / sizes[rows].sum() / np.log(2))
    found = paired_bits_per_byte(first.tolist(), other.tolist(), sizes.tolist())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.25 * np.std(drawn))
    assert found.high == pytest.approx(high, abs=0.25 * np.std(drawn))
    expected = bits_per_byte(other.tolist(), sizes.tolist()) - bits_per_byte(first.tolist(), sizes.tolist())
    assert found.value == pytest.approx(expected)
    same = paired_bits_per_byte(first.tolist(), first.tolist(), sizes.tolist())
    assert same == Interval(0.0, 0.0, 0.0)


def test_interval_does_not_depend_on_how_many_rows_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch):
    columns = [column.tolist() for column in _losses(30, seed=10)]
    before = paired_bits_per_byte(*columns, resamples=100)
    monkeypatch.setattr(quality, "_NUMBERS_AT_ONCE", 30 * 7)
    after = paired_bits_per_byte(*columns, resamples=100)
    assert (after.low, after.high) == pytest.approx((before.low, before.high))
