"""How much the texts of a dataset differ from each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datadreamer_like.errors import DataError, EmptyDataset, check_number
from datadreamer_like.models.words import words_of

if TYPE_CHECKING:
    from datadreamer_like.models.embedders.embedder import Embedder

_NO_MATCH = 0.1  # counted instead of no shared n-gram: "smoothing 1" of Chen and Cherry 2014


def diversity(texts: Sequence[str], embedder: Embedder | None = None) -> dict[str, float]:
    """Returns measures of how diverse texts are: `vocabulary`, `distinct_2`, `self_bleu`, `similarity`.

    Those that Yu et al. 2023 (arXiv:2306.15895) compare datasets by, and self-BLEU. The vocabulary and self-BLEU depend
    on the number of texts: compare datasets of the same size. `similarity` is only there with an embedder.

    Raises:
        EmptyDataset, DataError: There are fewer than two texts.

    Example:
        >>> diversity(["a red cat", "a red dog"])["vocabulary"]
        4.0
    """
    _check(texts)
    found = {
        "vocabulary": float(vocabulary_size(texts)),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts),
    }
    return found if embedder is None else found | {"similarity": average_similarity(embedder.run(list(texts)))}


def vocabulary_size(texts: Sequence[str]) -> int:
    """Returns the number of different words, in lower case.

    Example:
        >>> vocabulary_size(["A cat", "a dog"])
        3
    """
    return len({word for text in texts for word in _words(text)})


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Returns the number of different n-grams of words divided by that of all; 0 if no text has one.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv:1510.03055.

    Example:
        >>> distinct_n(["a cat sat", "a cat ran"], 2)
        0.75
    """
    check_number(n, "n", 1, whole=True)
    counts = sum((_ngrams(_words(text), n) for text in texts), Counter[tuple[str, ...]]())
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: Sequence[str], n: int = 4) -> float:
    """Returns the mean BLEU of each text with all others as references, from 0 (all differ) to 1 (all are equal).

    Zhu et al. 2018, "Texygen", arXiv:1802.01886: n-grams of up to `n` words with equal weights; where a text shares
    none with the others, 0.1 is counted (Chen and Cherry 2014). A text without words scores 0; lengths for which a text
    has no n-gram are left out. It takes time in proportion to the number of words, not of pairs.

    Raises:
        EmptyDataset, DataError: There are fewer than two texts.

    Example:
        >>> self_bleu(["the cat sat on a mat", "the cat sat on a mat"])
        1.0
    """
    _check(texts)
    check_number(n, "n", 1, whole=True)
    words = [_words(text) for text in texts]
    lengths = Counter(map(len, words))
    log_precisions: list[list[float]] = [[] for _ in texts]
    for size in range(1, n + 1):
        counts = [_ngrams(each, size) for each in words]
        most = _two_highest(counts)
        for own, logs in zip(counts, log_precisions, strict=True):
            if not own:
                continue
            # The highest count in another text: the second highest of all where this text has the highest.
            shared = sum(min(count, most[gram][count == most[gram][0]]) for gram, count in own.items())
            logs.append(math.log((shared or _NO_MATCH) / own.total()))
    scores = []
    for each, logs in zip(words, log_precisions, strict=True):
        if not each:
            scores.append(0.0)
            continue
        lengths[len(each)] -= 1
        closest = min((length for length in lengths if lengths[length]), key=lambda x: (abs(x - len(each)), x))
        lengths[len(each)] += 1
        penalty = min(0.0, 1 - closest / len(each))
        scores.append(math.exp(penalty + sum(logs) / len(logs)))
    return sum(scores) / len(scores)


def average_similarity(vectors: Any) -> float:
    """Returns the mean cosine similarity of all pairs of different vectors [texts, dims], from their sum alone.

    Raises:
        EmptyDataset, DataError: There are fewer than two vectors, or one is zero or not finite.

    Example:
        >>> average_similarity([[1.0, 0.0], [0.0, 1.0]])
        0.0
    """
    _check(vectors)
    matrix = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        raise DataError(f"Vector {bad[0]} is zero or not finite, so its direction is unknown. Leave its text out.")
    count = len(matrix)
    total = float(np.square((matrix / norms).sum(axis=0)).sum())
    return (total - count) / (count * (count - 1))


def _words(text: str) -> list[str]:
    return words_of(text.lower())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int]]:
    """For each n-gram its two highest counts in a text."""
    most: dict[tuple[str, ...], tuple[int, int]] = {}
    for own in counts:
        for gram, count in own.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (count, first) if count > first else (first, max(second, count))
    return most


def _check(values: Any) -> None:
    if len(values) == 0:
        raise EmptyDataset("There are no texts to compare.")
    if len(values) < 2:
        raise DataError("There is one text; diversity is a measure of several. Pass two or more.")
