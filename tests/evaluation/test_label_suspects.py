"""Confident learning finds planted noise, and its probabilities mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.linear_model import RidgeClassifier
from sklearn.naive_bayes import GaussianNB

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError
from datadreamer_like.evaluation import label_suspects

CLASSES, ROWS = 5, 2000


def planted(noise: str, rate: float, seed: int = 0, spread: float = 2.0) -> tuple[Any, Any, Any]:
    """Overlapping clouds, their labels, and labels of which a share is wrong: anywhere, or the next class's."""
    features, truth = make_blobs(ROWS, n_features=8, centers=CLASSES, cluster_std=spread, random_state=seed)
    random = np.random.default_rng(seed)
    wrong = random.random(ROWS) < rate
    shift = 1 if noise == "confusable" else random.integers(1, CLASSES, ROWS)
    return features, truth, np.where(wrong, (truth + shift) % CLASSES, truth)


@pytest.mark.parametrize("noise", ["uniform", "confusable"])
def test_planted_noise_is_found_and_corrected(noise):
    features, truth, given = planted(noise, 0.15)
    found = label_suspects(features, given)
    wrong = given != truth
    assert (wrong & found.is_suspect).sum() / found.is_suspect.sum() > 0.9  # precision
    assert (wrong & found.is_suspect).sum() / wrong.sum() > 0.9  # recall
    assert found.noise_rate == pytest.approx(wrong.mean(), abs=0.02)
    suggested = np.array(found.suggested).astype(int)
    assert (suggested == truth).mean() > 0.97 > (given == truth).mean()
    planted_joint = np.zeros((CLASSES, CLASSES))
    np.add.at(planted_joint, (given, truth), 1 / ROWS)
    assert np.abs(found.joint - planted_joint).max() < 0.01
    assert found.joint.sum() == pytest.approx(1)


def test_an_error_probability_is_the_share_of_wrong_labels_among_such_rows():
    features, truth, given = planted("confusable", 0.2, spread=5.0)
    found = label_suspects(features, given)
    wrong = given != truth
    edges = [0.0, 0.05, 0.2, 0.5, 0.8, 1.0 + 1e-9]
    for low, high in zip(edges, edges[1:], strict=False):
        rows = (found.error_probabilities >= low) & (found.error_probabilities < high)
        expected = found.error_probabilities[rows].mean()
        assert wrong[rows].mean() == pytest.approx(expected, abs=0.04 + 2 * np.sqrt(0.25 / rows.sum()))
    assert found.error_probabilities.mean() == pytest.approx(wrong.mean(), abs=0.03)
    assert np.allclose(found.probabilities.sum(1), 1)
    assert np.allclose(found.error_probabilities, 1 - found.probabilities[np.arange(ROWS), given])


def test_right_labels_give_no_suspects():
    features, _, given = planted("uniform", 0.0)
    found = label_suspects(features, given)
    assert found.is_suspect.mean() < 0.01
    assert found.error_probabilities.mean() < 0.01
    assert found.noise_rate < 0.01


def test_trusted_rows_are_learnt_from_and_never_suspected():
    features, truth, given = planted("confusable", 0.45, spread=4.0)  # nearly as many wrong as right ones
    trusted = np.arange(ROWS) < 300
    given[trusted] = truth[trusted]
    found = label_suspects(features, given, trusted=trusted)
    assert not found.is_suspect[trusted].any()
    assert (found.error_probabilities[trusted] == 0).all()
    alone = label_suspects(features[300:], given[300:])

    def right(suspects: Any) -> float:
        return float((np.array(suspects.suggested[-1700:]).astype(int) == truth[300:]).mean())

    assert right(found) >= right(alone)
    assert right(found) > (given[300:] == truth[300:]).mean() + 0.2


def test_texts_and_any_classifier_will_do():
    random = np.random.default_rng(0)
    words = {"cat": ["meow", "purr", "claw"], "dog": ["bark", "wag", "bone"]}
    truth = ["cat", "dog"] * 60
    texts = [" ".join(random.choice(words[label], 4)) for label in truth]
    given = list(truth)
    for row in (3, 20, 41, 70):
        given[row] = "dog" if truth[row] == "cat" else "cat"
    found = label_suspects(texts, given)
    assert np.flatnonzero(found.is_suspect).tolist() == [3, 20, 41, 70]
    assert found.suggested == truth
    assert found.classes == ("cat", "dog")
    features, labels, noisy = planted("uniform", 0.1)
    other = label_suspects(features, noisy, classifier=GaussianNB(), folds=3)
    assert ((noisy != labels) & other.is_suspect).sum() / (noisy != labels).sum() > 0.9
    again = label_suspects(features, noisy, classifier=GaussianNB(), folds=3)
    assert np.array_equal(again.probabilities, other.probabilities)
    counted = label_suspects(features, noisy, classifier=GaussianNB(), folds=np.int64(3))
    assert np.array_equal(counted.probabilities, other.probabilities)


@pytest.mark.parametrize(
    ("examples", "labels", "options", "error", "words"),
    [
        ("text", ["a"], {}, ArgumentTypeError, "is one text"),
        (["x"] * 4, ["a"] * 3, {}, DefinitionError, "4 examples and 3 labels"),
        (["x"] * 4, ["a"] * 4, {"folds": 2}, DataError, "one class only"),
        (["x"] * 4, ["a", "a", "a", "b"], {"folds": 2}, DataError, r'fewer rows than the 2 folds: "b" \(1\)'),
        (["x"] * 4, ["a", "a", "b", "b"], {"folds": 1}, DefinitionError, "folds is 1"),
        (["x"] * 4, ["a", None, "b", "b"], {"folds": 2}, DataError, "A label is None"),
        (["x"] * 4, ["a", "b", float("nan"), "b"], {"folds": 2}, DataError, "A label is nan, in row 2"),
        (["x"] * 4, ["a", "a", "b", {"b": 1.0}], {"folds": 2}, ArgumentTypeError, "label of row 3 is .*one label"),
        (["xx", None] * 2, ["a", "a", "b", "b"], {"folds": 2}, DataError, "holds None among texts"),
        (["x"] * 4, ["a", "a", "b", "b"], {"folds": 2, "trusted": ["no"] * 4}, ArgumentTypeError, "holds 'no'"),
        (np.array([[1.0], [np.nan]]), ["a", "b"], {}, DataError, "finite features"),
        (np.ones(4), ["a", "a", "b", "b"], {"folds": 2}, DataError, r"features \[rows, dims\]"),
        (np.ones((2, 1)), ["a", "b"], {"classifier": RidgeClassifier()}, ArgumentTypeError, "has no predict_proba"),
        (
            np.ones((4, 1)),
            ["a", "a", "b", "b"],
            {"folds": 2, "trusted": [True]},
            DefinitionError,
            "1 values of trusted",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(examples, labels, options, error, words):
    with pytest.raises(error, match=words):
        label_suspects(examples, labels, **options)
