"""Votes as they are read and described, and agreement, against scikit-learn and sums of binomial probabilities."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from datadreamer_like.errors import DataDreamerError, DataError, DefinitionError, EmptyDataset, LabelError
from datadreamer_like.evaluation import Votes, cohens_kappa, exact_interval


def test_labels_are_read_as_trainers_name_them():
    votes = Votes.of({"a": [10, 9, None], "b": ["10", {"9": 0.7, "10": 0.3}, {"9": 0.5, "10": 0.5}]})
    assert votes.classes == ("9", "10")  # numbers by value
    assert votes.codes.tolist() == [[1, 1], [0, 0], [-1, -1]]
    assert Votes.of({"a": [True, 1, False]}).classes == ("1", "False", "True")


@pytest.mark.parametrize(
    ("votes", "classes", "error", "message"),
    [
        ({}, None, DefinitionError, "no voters"),
        ({"a": []}, None, EmptyDataset, "no rows"),
        ({"a": ["x"], "b": ["x", "y"]}, None, DefinitionError, "different numbers of rows"),
        ({"a": ["x", "Gmes", "Gmes"]}, ["x", "games"], LabelError, r'"a" has "Gmes" in row 1 \(2 such rows.*"games"'),
        ({"a": [0.5]}, None, LabelError, '"a" has 0.5 in row 0, of type float'),
        ({"a": [["x"]]}, None, LabelError, r"\['x'\] in row 0"),
        ({"a": [{"x": float("nan"), "y": 0.5}]}, None, LabelError, "probabilities must be numbers"),
        ({"a": ["x"]}, ["x", "y", "x"], DefinitionError, "may occur once"),
    ],
)
def test_what_is_no_vote_is_refused(votes: Any, classes: Any, error: type[DataDreamerError], message: str):
    with pytest.raises(error, match=message):
        Votes.of(votes, classes, '"Votes"')


def test_the_summary_counts_rows():
    votes = Votes.of({"a": ["x", "x", None, "y"], "b": ["x", "y", None, None], "c": ["x", "y", "y", None]}, ["x", "y"])
    rows = {row["voter"]: row for row in votes.summary(["x", "y", "y", None]).rows}
    shares = {name: (row["coverage"], row["overlap"], row["conflict"]) for name, row in rows.items()}
    assert shares == {"a": (0.75, 0.5, 0.25), "b": (0.5, 0.5, 0.25), "c": (0.75, 0.5, 0.25)}
    assert [row["labels"] for row in rows.values()] == [2, 2, 2]
    assert [row["gold"] for row in rows.values()] == [2, 2, 3]
    assert [row["accuracy"].value for row in rows.values()] == [0.5, 1.0, 1.0]
    assert "accuracy" not in str(votes.summary())


@given(st.integers(1, 60).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
@settings(max_examples=40, deadline=None)
def test_the_limits_of_an_exact_interval_are_where_the_tails_have_their_share(pair: tuple[int, int]):
    hits, rows = pair

    def at_most(count: int, share: float) -> float:
        return math.fsum(math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(count + 1))

    found = exact_interval(hits, rows, confidence=0.9)
    assert found.value == hits / rows
    assert found.low == 0 if hits == 0 else 1 - at_most(hits - 1, found.low) == pytest.approx(0.05, abs=1e-9)
    assert found.high == 1 if hits == rows else at_most(hits, found.high) == pytest.approx(0.05, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[int, int]]):
    first, second = (list(labels) for labels in zip(*pairs, strict=True))
    found = cohens_kappa(first, second, resamples=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one label only
        expected = cohen_kappa_score(first, second)
    assert found.value == pytest.approx(0.0 if np.isnan(expected) else expected, abs=1e-12)
    assert found.low <= found.high


def test_kappas_interval_covers_what_was_planted():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(40):
        first = rng.integers(0, 2, 150)
        second = np.where(rng.random(150) < 0.8, first, 1 - first)  # kappa 0.6
        found = cohens_kappa(first.tolist(), second.tolist(), resamples=500, seed=seed)
        hits += found.low <= 0.6 <= found.high
    assert 34 <= hits <= 40


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: exact_interval(0, 0), EmptyDataset, "no rows"),
        (lambda: exact_interval(3, 2), DataError, "3 hits among 2 rows"),
        (lambda: exact_interval(1, 2, confidence=0.0), DefinitionError, "confidence"),
        (lambda: cohens_kappa([], []), EmptyDataset, "no rows"),
        (lambda: cohens_kappa([1], [1, 2]), DataError, "1 labels and 2"),
    ],
)
def test_wrong_numbers_are_refused(call: Any, error: type[DataDreamerError], message: str):
    with pytest.raises(error, match=message):
        call()
