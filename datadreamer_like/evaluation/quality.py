"""Scores of classifiers and language models, and their differences between two models with intervals.

A smaller vocabulary splits a text into more tokens, each easier to predict, so losses and perplexities per token can be
compared only between models that share a tokenizer. Bits per byte can always be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from datadreamer_like.report import Interval

Weights = np.ndarray[Any, np.dtype[np.float64]]
"""How often each row is drawn, [resamples, rows]; or one number per resample."""

_AT_ONCE, _NUMBERS_AT_ONCE = 500, 5_000_000


def scores(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Returns a classifier's "accuracy" and "macro_f1", the unweighted mean over the classes among the labels."""
    found = _scorer(truth, predicted)(np.ones((1, len(truth))))
    return {name: float(value) for name, (value,) in found.items()}


def macro_f1_of_counts(hits: Weights, predicted: Weights, wanted: Weights) -> Weights:
    """Returns the macro-F1 from each class's numbers of hits, predictions and labels [..., classes].

    Classes without labels are left out of the mean.
    """
    present = wanted > 0
    f1 = 2 * hits / np.maximum(predicted + wanted, 1e-12)
    mean: Weights = (f1 * present).sum(-1) / np.maximum(present.sum(-1), 1)
    return mean


def span_scores(wanted: Sequence[Sequence[Hashable]], predicted: Sequence[Sequence[Hashable]]) -> dict[str, float]:
    """Returns "precision", "recall" and "f1" of the spans of all texts together.

    A span is right if its text has the same span with the same label, as in CoNLL-2003 (Tjong Kim Sang and De Meulder).
    Without spans, wanted or predicted, a figure is 0.

    Example:
        >>> span_scores([[(0, 2, "a")], [(1, 3, "b")]], [[(0, 2, "a")], [(1, 2, "b"), (2, 3, "b"), (4, 5, "a")]])
        {'precision': 0.25, 'recall': 0.5, 'f1': 0.3333333333333333}
    """
    hits = sum(len({*first} & {*second}) for first, second in zip(wanted, predicted, strict=True))
    said, asked = (sum(len({*spans}) for spans in texts) for texts in (predicted, wanted))
    f1 = 2 * hits / max(1, said + asked)
    return {"precision": hits / max(1, said), "recall": hits / max(1, asked), "f1": f1}


def bits_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """Returns the bits per byte of text: the sum of the losses [texts] over the sum of the texts' UTF-8 bytes."""
    return math.fsum(nats) / (sum(sizes) * math.log(2))


def token_loss(nats: Sequence[float], tokens: Sequence[int]) -> float:
    """Returns the mean loss per token in nats, over all tokens of all texts."""
    return math.fsum(nats) / max(1, sum(tokens))


def perplexity(loss: float) -> float:
    """Returns the perplexity for a mean loss per token in nats."""
    return math.exp(min(loss, 700.0))  # larger ones overflow


def paired_differences(
    truth: Sequence[str],
    first: Sequence[str],
    other: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Returns the differences in "accuracy" and "macro_f1" between two models on the same rows, `other - first`.

    `truth` are the labels, `first` and `other` the models' predictions [rows]. For the rest see `paired_bootstrap`.
    """
    # Rows with the same label and the same two predictions are interchangeable, so only their counts are resampled.
    kinds = Counter(zip(truth, first, other, strict=True))
    truths, firsts, others = (list(part) for part in zip(*kinds, strict=True))
    better, worse = _scorer(truths, others), _scorer(truths, firsts)

    def differences(weights: Weights) -> dict[str, Weights]:
        base = worse(weights)
        return {name: score - base[name] for name, score in better(weights).items()}

    counts = np.array(list(kinds.values()), dtype=np.float64)
    return paired_bootstrap(differences, counts, resamples=resamples, seed=seed, level=level)


def paired_bits_per_byte(
    first: Sequence[float], other: Sequence[float], sizes: Sequence[int], *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Returns the difference in bits per byte between two models on the same texts, `other - first`.

    `first` and `other` are the losses of each text in nats, summed over its tokens [rows]; `sizes` its bytes [rows].
    Texts count by their length, as in `bits_per_byte`.
    """
    more = (np.asarray(other, dtype=np.float64) - np.asarray(first, dtype=np.float64)) / math.log(2)
    lengths = np.asarray(sizes, dtype=np.float64)

    def differences(weights: Weights) -> dict[str, Weights]:
        # A resample of empty texts only has 0 bytes.
        return {"bits_per_byte": weights @ more / np.maximum(weights @ lengths, 1.0)}

    found = paired_bootstrap(differences, np.ones(len(more)), resamples=resamples, seed=seed, level=0.95)
    return found["bits_per_byte"]


def mean_interval(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Returns the mean of values [rows], such as the points of a win rate, with its 95 % interval by bootstrap."""
    given = np.asarray(values, dtype=np.float64)

    def means(weights: Weights) -> dict[str, Weights]:
        return {"mean": weights @ given / weights.sum(1)}

    return paired_bootstrap(means, np.ones(len(given)), resamples=resamples, seed=seed, level=0.95)["mean"]


def paired_bootstrap(
    differences: Callable[[Weights], dict[str, Weights]], counts: Weights, *, resamples: int, seed: int, level: float
) -> dict[str, Interval]:
    """Returns differences between two models on the same rows, each with its percentile interval.

    Rows are resampled with replacement, together with both models' answers, and the differences are recomputed for
    each resample (Efron 1979; Koehn 2004 for paired comparisons). Rows that are hard for one model are mostly hard for
    the other, so the interval of the difference is far narrower than those of the two scores. If it excludes 0, other
    rows of the same kind would show a difference of the same sign. The interval covers the choice of rows, not the
    variation between training seeds.

    `differences` takes weightings of the rows [resamples, rows] and returns differences [resamples], by name. `counts`
    are how often each distinct row occurs [rows]; identical rows may be merged. `level` is the confidence level.
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


def _scorer(truth: Sequence[str], predicted: Sequence[str]) -> Callable[[Weights], dict[str, Weights]]:
    """Returns a function from row weightings [weightings, rows] to a classifier's scores [weightings]."""
    classes = np.unique(np.asarray(truth))
    is_class, is_said = ((np.asarray(names)[:, None] == classes).astype(np.float64) for names in (truth, predicted))
    is_hit = is_class * is_said

    def scored(weights: Weights) -> dict[str, Weights]:
        hits = weights @ is_hit
        macro_f1 = macro_f1_of_counts(hits, weights @ is_said, weights @ is_class)
        return {"accuracy": hits.sum(1) / weights.sum(1), "macro_f1": macro_f1}

    return scored
