"""How far labels agree: exact intervals of shares, and agreement beyond chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from datadreamer_like.errors import DataError, EmptyDataset, check_number, require_extra
from datadreamer_like.report import Interval

from .quality import Weights, paired_bootstrap


def exact_interval(hits: int, rows: int, *, confidence: float = 0.95) -> Interval:
    """Returns the share of hits among rows with its exact interval (Clopper and Pearson 1934).

    For any true share, the interval of independent rows holds it with a probability of at least `confidence`.

    Raises:
        EmptyDataset, DataError: There are no rows, or more hits than rows.
        MissingExtra: scipy is not installed.

    Example:
        >>> f"{exact_interval(18, 20):.3f}"
        '0.900 [0.683, 0.988]'
    """
    require_extra("train", "scipy", what="exact_interval")
    from scipy.stats import beta

    check_number(confidence, "confidence", 0, 1, over=True)
    check_number(hits, "hits", 0, whole=True)
    if rows < 1:
        raise EmptyDataset("There are no rows to measure a share on.")
    if hits > rows:
        raise DataError(f"There are {hits:,} hits among {rows:,} rows; there can be no more hits than rows.")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, rows - hits + 1))
    high = 1.0 if hits == rows else float(beta.ppf(1 - tail, hits + 1, rows - hits))
    return Interval(hits / rows, low, high)


def cohens_kappa(
    first: Sequence[Hashable], second: Sequence[Hashable], *, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Returns Cohen's kappa (1960) of two labellers of the same rows, with a 95 % bootstrap interval over the rows.

    1 is agreement on every row, 0 what two labellers have by chance who use the labels as often. Where chance alone
    agrees on every row, since both give one and the same label, kappa is 0.

    Raises:
        EmptyDataset, DataError: There are no rows, or the labellers have different numbers of rows.

    Example:
        >>> cohens_kappa(["a", "a", "b", "b"], ["a", "a", "b", "a"]).value
        0.5
    """
    if len(first) != len(second):
        raise DataError(f"There are {len(first):,} labels and {len(second):,} to compare with. Pass one for each.")
    if not len(first):
        raise EmptyDataset("There are no rows on which to measure agreement.")
    cells = Counter(zip(first, second, strict=True))
    names = list(dict.fromkeys(label for pair in cells for label in pair))
    is_first, is_second = (
        np.array([[name == pair[side] for name in names] for pair in cells], dtype=np.float64) for side in (0, 1)
    )
    same = np.array([a == b for a, b in cells], dtype=np.float64)

    def kappa(weights: Weights) -> dict[str, Weights]:
        total = weights.sum(1)
        agreed = weights @ same / total
        chance = ((weights @ is_first) * (weights @ is_second)).sum(1) / total**2
        return {"kappa": (agreed - chance) / np.where(chance < 1, 1 - chance, 1.0)}

    counts = np.array(list(cells.values()), dtype=np.float64)
    return paired_bootstrap(kappa, counts, resamples=resamples, seed=seed, level=0.95)["kappa"]
