"""The label model, against planted voters, Bayes' rule in plain Python, and what must hold of any votes."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datadreamer_like.errors import DataDreamerError, DataError, DefinitionError, EmptyDataset, LabelError
from datadreamer_like.evaluation import FittedLabelModel, Votes, fit_label_model

SEEDS = 20
ROWS = 2000
ACCURACIES = np.array([0.95, 0.85, 0.75, 0.65, 0.6, 0.55])
COVERAGES = np.array([0.5, 0.8, 0.9, 0.6, 0.9, 0.9])


def votes_of(codes: Any, classes: int) -> Votes:
    codes = np.asarray(codes, dtype=np.int64)
    return Votes(tuple(f"v{j}" for j in range(codes.shape[1])), tuple(map(str, range(classes))), codes)


def planted(
    seed: int, balance: list[float], accuracies: Any = ACCURACIES, coverages: Any = COVERAGES
) -> tuple[np.ndarray, Votes]:
    """True classes, and votes that are right with the accuracies, and wrong for any other class."""
    rng, classes = np.random.default_rng(seed), len(balance)
    truth = rng.choice(classes, ROWS, p=balance)
    wrong = (truth[:, None] + rng.integers(1, classes, (ROWS, len(accuracies)))) % classes
    codes = np.where(rng.random(wrong.shape) < accuracies, truth[:, None], wrong)
    return truth, votes_of(np.where(rng.random(wrong.shape) < coverages, codes, -1), classes)


def majority_accuracy(truth: np.ndarray, votes: Votes) -> float:
    """Of the majority's labels, where a tie is right as often as a draw among the tied."""
    best = votes.counts == votes.counts.max(1, keepdims=True)
    return float((best / best.sum(1, keepdims=True))[np.arange(len(truth)), truth].mean())


@pytest.mark.parametrize("balance", [[0.85, 0.15], [0.6, 0.2, 0.1, 0.1]])
def test_planted_accuracies_are_recovered_within_sampling_error_and_labels_beat_the_majority(balance: list[float]):
    errors, balances, gains = [], [], []
    for seed in range(SEEDS):
        truth, votes = planted(seed, balance)
        model = fit_label_model(votes)
        errors.append(np.array(list(model.accuracies.values())) - ACCURACIES)
        balances.append(model.balance - balance)
        own = (model.probabilities(votes).argmax(1) == truth).mean()
        gains.append(own - majority_accuracy(truth, votes))
    # The standard error of an accuracy counted on the true labels; not to know them costs about as much again.
    counted = np.sqrt(ACCURACIES * (1 - ACCURACIES) / (ROWS * COVERAGES))
    errors = np.array(errors)
    spread = errors.std(0, ddof=1)
    assert (spread < 3 * counted).all()
    assert (np.abs(errors.mean(0)) < 3.5 * spread / math.sqrt(SEEDS)).all()  # no bias that 20 seeds show
    assert np.abs(np.mean(balances, 0)).max() < 0.01
    assert min(gains) > 0
    assert np.mean(gains) > 0.02


def test_class_conditional_accuracies_of_voters_that_confuse_classes_are_recovered():
    rng = np.random.default_rng(0)
    confusions = np.stack([0.55 * np.eye(3) + 0.45 * rng.dirichlet(np.ones(3), 3) for _ in range(6)])
    truth = rng.choice(3, 20_000, p=[0.5, 0.3, 0.2])
    edges = confusions[:, truth].cumsum(2)
    codes = (rng.random((6, len(truth), 1)) > edges).sum(2).clip(max=2).T
    model = fit_label_model(votes_of(codes, 3))
    assert model.outcomes[:, :, :3] == pytest.approx(confusions, abs=0.04)
    assert model.class_accuracies == pytest.approx(np.diagonal(confusions, axis1=1, axis2=2), abs=0.04)


def test_functions_that_vote_for_one_class_or_abstain_are_weighed_by_their_false_alarms():
    rng, classes = np.random.default_rng(1), 5
    truth = rng.integers(0, classes, 4000)
    false_alarms = np.array([0.01, 0.02, 0.05, 0.1, 0.2])
    fires = rng.random((len(truth), classes)) < np.where(np.eye(classes)[truth] > 0, 0.6, false_alarms)
    codes = np.where(fires, np.arange(classes), -1)
    unsure = np.where(rng.random((len(truth), 2)) < 0.5, truth[:, None], rng.integers(0, classes, (len(truth), 2)))
    votes = votes_of(np.column_stack([codes, unsure]), classes)
    model = fit_label_model(votes)
    found = np.array([model.outcomes[j, np.arange(classes) != j, j].mean() for j in range(classes)])
    assert found == pytest.approx(false_alarms, abs=0.03)
    own = (model.probabilities(votes).argmax(1) == truth).mean()
    assert own > majority_accuracy(truth, votes) + 0.03


def test_a_voter_that_is_worse_than_chance_is_taken_for_what_it_is():
    truth, votes = planted(0, [0.5, 0.5], np.array([0.9, 0.8, 0.8, 0.7, 0.2]), np.full(5, 0.9))
    model = fit_label_model(votes)
    assert model.accuracies["v4"] == pytest.approx(0.2, abs=0.04)
    assert (model.probabilities(votes).argmax(1) == truth).mean() > majority_accuracy(truth, votes) + 0.03


def test_with_equal_voters_the_labels_are_those_of_the_majority():
    # Every combination of three votes as often as equal voters of an accuracy of 0.8 give it: all are exchangeable.
    rows = []
    for votes in product(range(2), repeat=3):
        chance = [math.prod(0.8 if vote == label else 0.2 for vote in votes) for label in range(2)]
        rows += [votes] * round(1000 * sum(chance) / 2)
    votes = votes_of(rows, 2)
    model = fit_label_model(votes)
    assert np.ptp(list(model.accuracies.values())) < 1e-6
    assert (model.probabilities(votes).argmax(1) == votes.counts.argmax(1)).all()


def test_probabilities_are_those_of_bayes_rule():
    _, votes = planted(3, [0.6, 0.3, 0.1])
    model = fit_label_model(votes)
    found = model.probabilities(votes)
    for row in range(50):
        joint = []
        for label in range(3):
            terms = [float(model.balance[label])]
            for voter, vote in enumerate(votes.codes[row]):
                terms.append(float(model.outcomes[voter, label, vote if vote >= 0 else 3]))
            joint.append(math.prod(terms))
        assert found[row] == pytest.approx([each / math.fsum(joint) for each in joint], abs=1e-12)


def log_density(votes: Votes, model: FittedLabelModel, prior: np.ndarray) -> float:
    """The logarithm of the posterior density, in plain Python, up to a constant."""
    classes, total = len(votes.classes), 0.0
    for row in votes.codes:
        joint = []
        for label in range(classes):
            terms = [model.outcomes[j, label, vote if vote >= 0 else classes] for j, vote in enumerate(row)]
            joint.append(model.balance[label] * math.prod(terms))
        total += math.log(math.fsum(joint))
    total += sum(map(math.log, model.balance))
    return total + float((prior * np.log(np.maximum(model.outcomes, 1e-300))).sum())


def test_what_is_fitted_is_a_maximum_of_the_posterior_density():
    """Any small step away from it, within the simplex, is no better."""
    _, votes = planted(5, [0.6, 0.4], ACCURACIES[:4], COVERAGES[:4])
    votes = votes_of(votes.codes[:300], 2)
    model = fit_label_model(votes, tolerance=0.0, max_iterations=4000)
    # At the maximum an outcome's share is that of its counts with the prior: so the prior's share follows.
    chances = model.probabilities(votes)
    codes = np.where(votes.codes < 0, 2, votes.codes)
    counts = np.stack([[np.bincount(column, part, 3) for part in chances.T] for column in codes.T])
    prior = model.outcomes * (counts.sum(2, keepdims=True) + 10.0) - counts
    assert (prior > -1e-6).all()
    assert prior.sum(2) == pytest.approx(10.0)
    best = log_density(votes, model, prior)
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = model.outcomes * np.exp(0.01 * rng.normal(size=model.outcomes.shape))
        balance = model.balance * np.exp(0.01 * rng.normal(size=2))
        other = FittedLabelModel(
            model.voters, model.classes, balance / balance.sum(), steps / steps.sum(2, keepdims=True), ()
        )
        assert log_density(votes, other, prior) < best


CODES = st.integers(1, 5).flatmap(
    lambda voters: st.lists(st.lists(st.integers(-1, 2), min_size=voters, max_size=voters), min_size=1, max_size=30)
)


@given(CODES.filter(lambda rows: any(code >= 0 for row in rows for code in row)), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_for_any_votes_the_density_never_falls_and_order_does_not_matter(rows: list[list[int]], seed: int):
    votes = votes_of(rows, 3)
    model = fit_label_model(votes, max_iterations=60)
    chances = model.probabilities(votes)
    assert np.isfinite(chances).all()
    assert chances.sum(1) == pytest.approx(1.0)
    assert model.outcomes.sum(2) == pytest.approx(1.0)
    assert (np.diff(model.history) >= -1e-9 * len(rows)).all()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    moved = votes_of(votes.codes[order], 3)
    assert fit_label_model(moved, max_iterations=60).outcomes.tolist() == model.outcomes.tolist()  # bit for bit
    voters = rng.permutation(votes.codes.shape[1])
    swapped = votes_of(votes.codes[:, voters], 3)
    again = fit_label_model(swapped, max_iterations=60)
    assert again.probabilities(swapped) == pytest.approx(chances, abs=1e-6)
    assert again.outcomes == pytest.approx(model.outcomes[voters], abs=1e-6)


def test_one_voter_is_believed_and_one_that_never_votes_says_nothing():
    codes = np.array([[0], [1], [1], [-1]])
    one = votes_of(codes, 2)
    assert fit_label_model(one).probabilities(one)[:3].argmax(1).tolist() == [0, 1, 1]
    both = votes_of(np.column_stack([codes, np.full(4, -1)]), 2)
    assert fit_label_model(both).probabilities(both) == pytest.approx(fit_label_model(one).probabilities(one), abs=1e-9)


def test_gold_rows_decide_what_votes_alone_cannot():
    """Two voters that always differ: only gold labels say which is right."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    votes = votes_of(np.column_stack([truth, 1 - truth]), 2)
    gold = [str(label) if row < 20 else None for row, label in enumerate(truth)]
    for only in (False, True):
        model = fit_label_model(votes, gold=gold, gold_only=only)
        assert (model.probabilities(votes).argmax(1) == truth).all()
        assert model.accuracies["v0"] > 0.9 > 0.3 > model.accuracies["v1"]  # of few rows the prior counts


def test_a_class_without_gold_rows_is_warned_of_unless_the_class_balance_is_given(caplog: pytest.LogCaptureFixture):
    truth, votes = planted(0, [0.5, 0.3, 0.2])
    gold = [str(label) if row < 300 and label < 2 else None for row, label in enumerate(truth)]
    given = fit_label_model(votes, gold=gold, gold_only=True, class_balance={"0": 0.5, "1": 0.3, "2": 0.2})
    assert caplog.text == ""
    learned = fit_label_model(votes, gold=gold, gold_only=True)
    assert "learned to be rare: 2." in caplog.text
    right = [(model.probabilities(votes).argmax(1) == truth).mean() for model in (given, learned)]
    assert right[0] > right[1] + 0.05


def test_a_given_class_balance_is_kept():
    _, votes = planted(0, [0.5, 0.5])
    model = fit_label_model(votes, class_balance={"0": 0.9, "1": 0.1})
    assert model.balance.tolist() == [0.9, 0.1]


TWO = {"a": ["x", "y"], "b": ["x", None]}


@pytest.mark.parametrize(
    ("votes", "options", "error", "message"),
    [
        ({"a": [None, None]}, {}, DefinitionError, "has 0 label|have 0 label"),
        ({"a": ["x", "x"]}, {}, DefinitionError, "have 1 label"),
        (TWO, {"smoothing": 0}, DefinitionError, "smoothing is 0"),
        (TWO, {"gold_only": True}, DefinitionError, "gold_only needs gold"),
        (TWO, {"gold": [None, None]}, EmptyDataset, "gold has no label"),
        (TWO, {"gold": ["x", None], "gold_only": True}, DataError, 'All gold labels are "x"'),
        ({"a": ["x", "y", None]}, {"gold": [None, None, "x"], "gold_only": True}, EmptyDataset, "No voter votes on a"),
        (TWO, {"gold": ["z", None]}, LabelError, 'gold has "z" in row 0'),
        (TWO, {"gold": ["x"]}, DataError, "gold has 1 rows, and the votes 2"),
        (TWO, {"class_balance": {"x": 1.0}}, DefinitionError, 'lacks the class "y"'),
        (TWO, {"class_balance": {"x": 0.5, "y": 0.4, "Y": 0.1}}, DefinitionError, 'has the class "Y"'),
        (TWO, {"class_balance": {"x": 0.5, "y": 0.4}}, DataError, "sum to 0.9"),
    ],
)
def test_what_cannot_be_fitted_is_refused(votes: Any, options: Any, error: type[DataDreamerError], message: str):
    with pytest.raises(error, match=message):
        fit_label_model(Votes.of(votes), **options)


def test_votes_of_another_panel_are_refused_and_no_vote_at_all_too():
    model = fit_label_model(Votes.of(TWO))
    with pytest.raises(DefinitionError, match="the label model knows a, b"):
        model.probabilities(Votes.of({"a": ["x", "y"]}))
    with pytest.raises(EmptyDataset, match="abstain on all rows"):
        fit_label_model(Votes.of({"a": [None]}, ["x", "y"]))


def test_a_voter_that_never_votes_has_no_accuracy():
    votes = Votes.of({"a": ["x", "y", "x"], "b": ["x", "y", "y"], "silent": [None, None, None]})
    learned = fit_label_model(votes).accuracies
    assert np.isnan(learned["silent"])
    assert 0 < learned["a"] < 1
    assert [row["learned"] is None for row in votes.summary(learned=learned).rows] == [False, False, True]
