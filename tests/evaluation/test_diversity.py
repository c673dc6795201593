"""Measures of diversity against their definitions, written out pair by pair."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from datadreamer_like.errors import DataError, EmptyDataset
from datadreamer_like.evaluation import average_similarity, distinct_n, diversity, self_bleu, vocabulary_size


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(["a", "b", "c", "d", "the", "of"], k=draw.randint(1, 9))) for _ in range(count)]


def grams(words: list[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypothesis: list[str], references: list[list[str]]) -> float:
    """BLEU-4 of Papineni et al. 2002 with smoothing 1, each reference looked at by itself."""
    logs = []
    for n in range(1, min(4, len(hypothesis)) + 1):
        own = grams(hypothesis, n)
        clipped = sum(min(count, max(grams(each, n)[gram] for each in references)) for gram, count in own.items())
        logs.append(math.log((clipped or 0.1) / sum(own.values())))
    closest = min((len(each) for each in references), key=lambda size: (abs(size - len(hypothesis)), size))
    penalty = 1.0 if len(hypothesis) > closest else math.exp(1 - closest / len(hypothesis))
    return penalty * math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("count", [2, 3, 17, 60])
def test_self_bleu_is_the_mean_bleu_of_each_text_with_all_others(count):
    words = [text.split() for text in texts(count)]
    expected = [bleu(each, words[:i] + words[i + 1 :]) for i, each in enumerate(words)]
    assert self_bleu(texts(count)) == pytest.approx(sum(expected) / count, rel=1e-12)


def test_average_similarity_is_that_of_all_pairs():
    vectors = np.random.default_rng(0).normal(size=(23, 5)) + 0.3
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.mean([one @ other for one, other in combinations(unit, 2)])
    assert average_similarity(vectors) == pytest.approx(expected, rel=1e-12)


def test_equal_texts_are_less_diverse_than_different_ones():
    same, different = ["a cat sat on the mat"] * 4, ["one two three", "four five six", "seven eight nine", "ten"]
    assert diversity(same) == {"vocabulary": 6, "distinct_2": 0.25, "self_bleu": 1.0}
    found = diversity(different)
    assert found["vocabulary"] == vocabulary_size(different) == 10
    assert found["distinct_2"] == distinct_n(different) == 1
    assert found["self_bleu"] < 0.1


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(EmptyDataset, match="no texts"):
        diversity([])
    with pytest.raises(DataError, match="one text"):
        self_bleu(["a"])
    with pytest.raises(DataError, match="Vector 1 is zero"):
        average_similarity([[1.0], [0.0]])
    assert distinct_n(["", "a"], 2) == 0
    assert self_bleu(["", "..."]) == 0
