"""How sure it is that one model is better than another: the paired bootstrap over the rows that both answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datadreamer_like.report import Interval

Weights = np.ndarray[Any, np.dtype[np.float64]]
"""How often each row is drawn, [resamples, rows]; or one figure for each resample."""

_AT_ONCE, _NUMBERS_AT_ONCE = 500, 5_000_000


def paired_bootstrap(
    differences: Callable[[Weights], dict[str, Weights]],
    counts: Weights,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Returns differences between two models on the same rows, each with its percentile interval.

    Rows are drawn anew with replacement, each with what both models made of it, and the differences are taken each
    time (Efron 1979; Koehn 2004 for paired comparisons). What is hard for one model is mostly hard for the other, so
    the interval of the difference is far narrower than those of the two qualities. An interval that excludes 0 says
    that other rows of the same kind would show a difference of the same sign. It covers the choice of the rows alone,
    not what another training seed would give.

    Args:
        differences: Takes weightings of the rows [resamples, rows] and returns differences [resamples], by name.
        counts: How many rows there are of each kind [rows]; rows that are alike may be counted as one kind.
        resamples: How often rows are drawn anew.
        seed: Seed of the drawing.
        level: Share of the resamples that lie inside the interval.
    """
    total = int(counts.sum())
    at_once = max(1, min(_AT_ONCE, _NUMBERS_AT_ONCE // len(counts)))
    random = np.random.default_rng(seed)
    drawn: list[dict[str, Weights]] = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn.append(differences(random.multinomial(total, counts / total, size=size).astype(np.float64)))
    tail = (1 - level) / 2
    result = {}
    for name, values in differences(counts[None, :]).items():
        low, high = np.quantile(np.concatenate([part[name] for part in drawn]), [tail, 1 - tail])
        result[name] = Interval(float(values[0]), float(low), float(high))
    return result
