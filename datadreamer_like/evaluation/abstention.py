"""Thresholds with a guarantee: which of a classifier's answers may be given, and which are handed over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset
from datadreamer_like.models.trained.confidence import Threshold

_STARTS = ((0.25, 0.3), (0.5, 0.7))
"""Where tests start, as shares of the rows, and the share of the significance level of each."""


def rows_needed(max_error: float = 0.02, confidence: float = 0.95) -> int:
    """Returns the fewest rows that can show a bound on errors: so many without an error, log(1 - c) / log(1 - e).

    Raises:
        DefinitionError: A share is not between 0 and 1.

    Example:
        >>> rows_needed(max_error=0.02, confidence=0.95)
        149
    """
    for name, share in (("max_error", max_error), ("confidence", confidence)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise DefinitionError(f"{name} is {share!r}; it must be a share between 0 and 1, without them.")
    return math.ceil(math.log1p(-confidence) / math.log1p(-max_error) - 1e-9)


def fit_threshold(
    scores: ArrayLike, correct: ArrayLike, *, max_error: float = 0.02, confidence: float = 0.95
) -> Threshold:
    """Returns the lowest threshold that is shown to keep the share of errors among answered rows within a bound.

    Guarantee: if calibration rows and later rows are independent draws from one distribution, then with a probability
    of at least `confidence` over the draw of the calibration rows, later rows with a score above the threshold are
    wrong with a probability of at most `max_error`. It holds for any model and any distribution without ties of scores,
    on average over all later rows, not for each class or group. It does not hold once the distribution has shifted, for
    calibration rows that the model was trained on, or for scores that were chosen by the labels of these rows.

    Method: selective classification (Geifman & El-Yaniv 2017, arXiv:1705.08500) as multiple testing (Learn then Test,
    Angelopoulos et al. 2021, arXiv:2110.01052). Each number n of most certain rows is a hypothesis, "more than
    max_error of the rows above the next score are wrong", and its p-value is exact: P(Binomial(n, max_error) ≤ errors).
    It is at most d exactly if the upper Clopper-Pearson bound at level 1 - d is at most `max_error`. Hypotheses are
    tested in a fixed sequence, from certain to uncertain rows, up to the first that is not rejected. A sequence may
    fail by chance where it starts, so there are two where rows suffice: from a quarter of the rows at 0.3 of the level
    1 - confidence, and from half of the rows at 0.7 of it; a sequence that reaches the next one adds its level.

    Args:
        scores: How certain the model is of each row, such as its log-odds [rows].
        correct: Whether its answer is right [rows].
        max_error: The largest share of wrong answers among answered rows.
        confidence: The probability of the guarantee.

    Returns:
        The threshold; infinite, which answers no row, if none is shown to keep the bound.

    Raises:
        EmptyDataset, DataError: There are no rows; lengths differ; a score is not a number, or a row
            neither right nor wrong; or there are fewer rows
            than the guarantee needs, see `rows_needed`.
        DefinitionError: A share is not between 0 and 1.

    Example:
        >>> found = fit_threshold([3.0] * 100 + [2.0] * 100 + [1.0] * 100, [True] * 200 + [False] * 100)
        >>> found.log_odds, found.coverage
        (1.0, 0.66...)
    """
    from scipy.stats import binom

    needed = rows_needed(max_error, confidence)
    try:
        certain, right = np.asarray(scores, dtype=np.float64), np.asarray(correct)
    except (TypeError, ValueError) as error:
        raise DataError(f"scores must be one number for each row: {error}") from None
    if right.dtype != np.bool_:
        if right.dtype.kind not in "iuf" or not np.isin(right, (0, 1)).all():
            raise DataError(f"correct has the type {right.dtype}; each value must be True or False, or 1 or 0.")
        right = right == 1
    if certain.ndim != 1 or certain.shape != right.shape or np.isnan(certain).any():
        raise DataError(
            f"scores has the shape {certain.shape} and correct {right.shape}; both must be [rows], without NaN."
        )
    rows = len(certain)
    if not rows:
        raise EmptyDataset("scores has no rows. Pass those of held-out rows.")
    if rows < needed:
        raise DataError(
            f"There are {rows:,} rows, and at least {needed:,} are needed to show an error of at most "
            f"{100 * max_error:.2f} % with a confidence of {100 * confidence:.2f} %. Pass more held-out rows, or "
            "raise max_error."
        )
    order = np.argsort(-certain, kind="stable")
    ranked, errors = certain[order], np.cumsum(~right[order])
    # Rows of equal scores are answered together.
    ends = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))
    p_values = binom.cdf(errors[ends], ends + 1, max_error)
    count = _last_rejected(ends + 1, p_values, _starts(rows, max_error, confidence))
    threshold = -math.inf if count == rows else float(ranked[count]) if count else math.inf
    wrong = int(errors[count - 1]) if count else 0
    return Threshold(threshold, float(max_error), float(confidence), rows, count, wrong)


def _starts(rows: int, max_error: float, confidence: float) -> list[tuple[int, float]]:
    """The numbers of rows at which sequences start, with their levels; they depend on the number of rows alone."""
    level = 1 - confidence
    starts = [(int(share * rows), weight * level) for share, weight in _STARTS]
    first, first_level = starts[0]
    if first < rows_needed(max_error, 1 - first_level):  # so few rows cannot pass at this level
        return [(max(int(_STARTS[-1][0] * rows), rows_needed(max_error, confidence)), level)]
    return starts


def _last_rejected(counts: Any, p_values: Any, starts: list[tuple[int, float]]) -> int:
    """Returns the largest number of rows whose hypothesis is rejected; 0 for none."""
    found, level, waiting = 0, 0.0, list(starts)
    for count, p_value in zip(counts, p_values, strict=True):
        while waiting and count >= waiting[0][0]:
            level += waiting.pop(0)[1]
        if level and p_value <= level:
            found = int(count)
        else:
            level = 0.0
    return found
