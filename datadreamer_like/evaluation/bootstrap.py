"""Confidence intervals for the difference between two models: the paired bootstrap over rows that both answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from datadreamer_like.report import Interval

Weights = np.ndarray[Any, np.dtype[np.float64]]
"""How often each row is drawn, [resamples, rows]; or one number per resample."""

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

    Rows are resampled with replacement, together with both models' answers, and the differences are recomputed for
    each resample (Efron 1979; Koehn 2004 for paired comparisons). Rows that are hard for one model are mostly hard for
    the other, so the interval of the difference is far narrower than those of the two scores. If it excludes 0, other
    rows of the same kind would show a difference of the same sign. The interval covers the choice of rows, not the
    variation between training seeds.

    Args:
        differences: Takes weightings of the rows [resamples, rows] and returns differences [resamples], by name.
        counts: How often each distinct row occurs [rows]; identical rows may be merged into one.
        resamples: Number of resamples.
        seed: Seed of the resampling.
        level: Confidence level of the interval.
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
