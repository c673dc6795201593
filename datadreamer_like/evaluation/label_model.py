"""The label model: how accurate labellers are, learned from where they agree, and the labels that follow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset, check_number, did_you_mean

from .votes import ABSTAINED, Codes, Votes

Floats = np.ndarray[Any, np.dtype[np.float64]]
logger = logging.getLogger("datadreamer_like")
_FLOOR = 1e-12  # of an outcome that no row has


@dataclass(frozen=True, eq=False)
class FittedLabelModel:
    """What `fit_label_model` has learned.

    Attributes:
        voters, classes: The names, as in the votes.
        balance: [classes], the share of each class.
        outcomes: [voters, classes, classes + 1], the probability of each vote of a voter, of an abstention last, given
            the class of a row.
        history: The logarithm of the posterior density at each iteration; it never falls.
    """

    voters: tuple[str, ...]
    classes: tuple[str, ...]
    balance: Floats
    outcomes: Floats
    history: tuple[float, ...]

    @property
    def accuracies(self) -> dict[str, float]:
        """The probability that a vote is right, by voter; NaN for one that never votes."""
        right = np.einsum("k,jkk->j", self.balance, self.outcomes[:, :, :-1])
        votes = np.einsum("k,jkv->j", self.balance, self.outcomes[:, :, :-1])
        found = np.where(votes > _FLOOR, right / np.maximum(votes, _FLOOR), np.nan)
        return dict(zip(self.voters, found.tolist(), strict=True))

    @property
    def class_accuracies(self) -> Floats:
        """The probability [voters, classes] that a vote on a row of a class is right."""
        votes = self.outcomes[:, :, :-1].sum(2)
        found: Floats = np.diagonal(self.outcomes[:, :, :-1], axis1=1, axis2=2) / np.maximum(votes, _FLOOR)
        return found

    def probabilities(self, votes: Votes, *, abstentions: bool = True) -> Floats:
        """Returns the probability of each class [rows, classes], given votes of the same voters.

        `abstentions` is whether a missing vote counts as what it says of the class, as that of a rule does. Without,
        only the given votes count, as where votes are missing because a request failed.
        """
        if (votes.voters, votes.classes) != (self.voters, self.classes):
            raise DefinitionError(
                f"The votes are of {', '.join(votes.voters)} for {', '.join(votes.classes)}; the label model knows "
                f"{', '.join(self.voters)} and {', '.join(self.classes)}. Pass votes of the same voters and labels."
            )
        patterns, place = np.unique(votes.codes, axis=0, return_inverse=True)
        outcomes = self.outcomes
        if not abstentions:
            shares = outcomes[:, :, :-1] / np.maximum(outcomes[:, :, :-1].sum(2, keepdims=True), _FLOOR)
            outcomes = np.concatenate([shares, np.ones_like(outcomes[:, :, -1:])], axis=2)
        found, _ = _posterior(_outcome(patterns, len(self.classes)), self.balance, outcomes)
        return found[place.reshape(-1)]


def fit_label_model(
    votes: Votes,
    *,
    gold: Iterable[Any] | None = None,
    gold_only: bool = False,
    class_balance: Mapping[str, float] | None = None,
    smoothing: float = 10.0,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> FittedLabelModel:
    """Learns from votes alone how often each voter is right for each class, by expectation maximisation.

    The model is that of Dawid and Skene (1979, Applied Statistics 28): given the class of a row, voters are
    independent, and each has its own probability of each vote. An abstention is one more outcome, so a function that
    votes for one class or abstains also says something by abstaining. These are the class-conditional accuracies of
    data programming (Ratner et al. 2016, arXiv:1605.07723; 2019, arXiv:1810.02840); expectation maximisation needs no
    class balance, and takes voters that are worse than chance for what they are.

    A voter of 16 classes has 16 × 16 probabilities, more than some hundred votes determine. So expectation maximisation
    first fits a smaller model from the majority's labels: a voter either knows the class, with a probability for each
    class, or guesses by probabilities of its own (MACE, Hovy et al. 2013, N13-1132). Its probabilities then count as
    `smoothing` rows of each class next to the votes (a Dirichlet prior), and the full model starts from there. It is
    computed in double precision over distinct combinations of votes, and draws nothing.

    Accuracies are determined by three or more voters that differ, are mostly better than chance, and do not copy one
    another: voters that err together count as agreeing.

    Args:
        votes: The votes.
        gold: True labels of some rows, None for others: these are learned from as they are.
        gold_only: Learn from the rows with gold labels alone. A class that none of them has is then learned to be rare,
            unless `class_balance` is given, which is warned of.
        class_balance: The share of each class; None learns it too.
        smoothing: Rows that the smaller model counts for in the full one, for each class and voter.
        max_iterations: Most iterations of either model.
        tolerance: Both stop where an iteration adds less than this to the log-density per row.

    Raises:
        EmptyDataset: No voter has voted, no row has a gold label, or with `gold_only` none that has a vote.
        DefinitionError: There are fewer than two classes, the class balance does not fit, or a number is out of range.
        LabelError: A gold label is not one of the classes.
        DataError: With `gold_only`, all gold labels are the same, and the class balance is not given; or its shares do
            not sum to 1.

    Example:
        >>> votes = Votes.of({"a": [0, 0, 1, 1, 1], "b": [0, 0, 1, 1, 0], "c": [0, 0, 1, None, 1]})
        >>> model = fit_label_model(votes)
        >>> model.probabilities(votes).argmax(1).tolist()
        [0, 0, 1, 1, 1]
    """
    classes = len(votes.classes)
    if classes < 2:
        raise DefinitionError(
            f"The votes have {classes} label ({', '.join(votes.classes) or 'none'}); a label model needs two or more. "
            "Pass all labels, also those that no voter gives."
        )
    check_number(smoothing, "smoothing", 0, over=True)
    check_number(max_iterations, "max_iterations", 1, whole=True)
    check_number(tolerance, "tolerance", 0)
    if gold_only and gold is None:
        raise DefinitionError("gold_only needs gold labels. Pass gold.")
    truth = np.full(len(votes), ABSTAINED) if gold is None else votes.gold_codes(gold)
    if not votes.has_vote.any():
        raise EmptyDataset("All voters abstain on all rows. Write functions that vote on more rows.")
    fixed = None if class_balance is None else _balance(class_balance, votes.classes)
    if gold_only and not (votes.has_vote & (truth != ABSTAINED)).any():
        raise EmptyDataset("No voter votes on a row with a gold label, so nothing is known of them. Label other rows.")
    if gold_only and fixed is None:
        _check_gold_has_classes(votes, truth)
    return fit_to_codes(votes, truth, gold_only, fixed, smoothing, max_iterations, tolerance)


def fit_to_codes(
    votes: Votes,
    truth: Codes,
    gold_only: bool,
    balance: Floats | None = None,
    smoothing: float = 10.0,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> FittedLabelModel:
    """Learns from votes and codes of true classes [rows], -1 where unknown, unchecked: see `fit_label_model`."""
    classes = len(votes.classes)
    kept = truth != ABSTAINED if gold_only else np.ones(len(votes), bool)
    patterns, counts = np.unique(np.column_stack([votes.codes, truth])[kept], axis=0, return_counts=True)
    rows = _Rows(_outcome(patterns[:, :-1], classes), counts.astype(np.float64), patterns[:, -1], balance)
    start, _ = _maximised(rows, _majority(rows, classes), _Knowing(rows, classes), max_iterations, tolerance)
    prior = smoothing * start.outcomes
    found, history = _maximised(rows, start.posterior, _Counting(prior), max_iterations, tolerance)
    return FittedLabelModel(votes.voters, votes.classes, found.balance, found.outcomes, tuple(history))


def _check_gold_has_classes(votes: Votes, truth: Codes) -> None:
    """Refuses gold labels of one class alone, and warns of classes without any."""
    absent = [name for place, name in enumerate(votes.classes) if not (truth == place).any()]
    help = "Add gold rows of the others, give class_balance, or learn from all rows (gold_only=False)."
    if len(absent) == len(votes.classes) - 1:
        only = votes.classes[truth.max()]
        raise DataError(f'All gold labels are "{only}", so every row would be learned to be "{only}". {help}')
    if absent:
        listed = ", ".join([*absent[:20], *(["..."] if len(absent) > 20 else [])])
        logger.warning("No gold row has one of these labels, which are so learned to be rare: %s. %s", listed, help)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Distinct combinations of votes: outcomes [rows, voters], counts, true classes or -1, and the class balance."""

    outcomes: Codes
    counts: Floats
    truth: Codes
    balance: Floats | None

    def known(self, posterior: Floats) -> Floats:
        """Returns the posterior with the true class where it is known."""
        has = self.truth != ABSTAINED
        posterior[has] = np.eye(posterior.shape[1])[self.truth[has]]
        return posterior


@dataclass(frozen=True, eq=False)
class _State:
    balance: Floats
    outcomes: Floats
    posterior: Floats


class _Counting:
    """The full model: the outcomes of each class are counted, with those of a prior [voters, classes, outcomes]."""

    def __init__(self, prior: Floats) -> None:
        self.prior = prior

    def outcomes(self, counts: Floats) -> Floats:
        total = counts + self.prior
        found: Floats = total / total.sum(2, keepdims=True)
        return found

    def log_prior(self, outcomes: Floats) -> float:
        return float((self.prior * np.log(np.maximum(outcomes, _FLOOR))).sum())


class _Knowing:
    """The smaller model: a voter knows the class of a row, or guesses; each class counts one row more, half known.

    One that knows a class for which it never votes abstains.
    """

    def __init__(self, rows: _Rows, classes: int) -> None:
        weighted = [np.bincount(votes, rows.counts, classes + 1) for votes in rows.outcomes.T]
        self.frequencies = np.array(weighted) / rows.counts.sum()
        votes_for = self.frequencies[:, :classes] > 0
        self.answers = np.eye(classes + 1)[np.where(votes_for, np.arange(classes), classes)]
        self.known = np.full(votes_for.shape, 0.5)
        self.guesses = self.frequencies

    def outcomes(self, counts: Floats) -> Floats:
        known = self.known[:, :, None] * self.answers
        share = known / np.maximum(known + (1 - self.known)[:, :, None] * self.guesses[:, None, :], _FLOOR)
        sure = counts * share
        self.known = (sure.sum(2) + 0.5) / (counts.sum(2) + 1.0)
        guessed = (counts - sure).sum(1) + self.frequencies
        self.guesses = guessed / guessed.sum(1, keepdims=True)
        found: Floats = self.known[:, :, None] * self.answers + (1 - self.known)[:, :, None] * self.guesses[:, None, :]
        return found

    def log_prior(self, outcomes: Floats) -> float:
        halves = 0.5 * (np.log(self.known) + np.log1p(-self.known)).sum()
        return float(halves + (self.frequencies * np.log(np.maximum(self.guesses, _FLOOR))).sum())


def _maximised(
    rows: _Rows, posterior: Floats, model: _Counting | _Knowing, most: int, tolerance: float
) -> tuple[_State, list[float]]:
    """Maximises the posterior density by expectation maximisation, and returns its logarithm at each iteration."""
    history: list[float] = []
    classes = posterior.shape[1]
    for _ in range(most):
        weighted = posterior * rows.counts[:, None]
        totals = weighted.sum(0) + 1.0
        balance = totals / totals.sum() if rows.balance is None else rows.balance
        counts = [[np.bincount(votes, part, classes + 1) for part in weighted.T] for votes in rows.outcomes.T]
        outcomes = model.outcomes(np.array(counts))
        posterior, logs = _posterior(rows.outcomes, balance, outcomes, rows.truth)
        posterior = rows.known(posterior)
        own = 0.0 if rows.balance is not None else float(np.log(balance).sum())
        history.append(float(rows.counts @ logs) + own + model.log_prior(outcomes))
        if len(history) > 1 and history[-1] - history[-2] < tolerance * rows.counts.sum():
            break
    return _State(balance, outcomes, posterior), history


def _posterior(votes: Codes, balance: Floats, outcomes: Floats, truth: Codes | None = None) -> tuple[Floats, Floats]:
    """Returns the probabilities of classes [rows, classes], and the log-likelihood of each row's votes and truth."""
    logs = np.log(np.maximum(outcomes, _FLOOR))
    joint = np.tile(np.log(np.maximum(balance, _FLOOR)), (len(votes), 1))
    for place, column in enumerate(votes.T):
        joint += logs[place].T[column]
    most = joint.max(1, keepdims=True)
    scaled = np.exp(joint - most)
    sums = scaled.sum(1, keepdims=True)
    likelihoods = (most + np.log(sums))[:, 0]
    if truth is not None:
        has = truth != ABSTAINED
        likelihoods[has] = joint[has, truth[has]]
    return scaled / sums, likelihoods


def _majority(rows: _Rows, classes: int) -> Floats:
    """The share of votes for each class; that over all rows for a row without votes."""
    counts = np.stack([(rows.outcomes == place).sum(1) for place in range(classes)], axis=1).astype(np.float64)
    votes = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(votes, 1.0)
    overall = rows.counts @ shares + 1e-9
    return rows.known(np.where(votes > 0, shares, overall / overall.sum()))


def _outcome(codes: Codes, classes: int) -> Codes:
    return np.where(codes == ABSTAINED, classes, codes)


def _balance(given: Mapping[str, float], classes: tuple[str, ...]) -> Floats:
    shares = {str(name): share for name, share in given.items()}
    for name in [*shares, *classes]:
        if name not in classes or name not in shares:
            lacks = "lacks" if name in classes else "has"
            raise DefinitionError(
                f'class_balance {lacks} the class "{name}"; the classes are {", ".join(classes)}.'
                f"{did_you_mean(name, classes) if lacks == 'has' else ''} Give each its share."
            )
        check_number(shares[name], f'class_balance of "{name}"', 0, 1, over=True)
    total = float(sum(shares.values()))
    if abs(total - 1) > 0.01:
        raise DataError(f"The shares of class_balance sum to {total:.4g}; they must sum to 1.")
    return np.array([shares[name] for name in classes]) / total
