"""ROUGE-L is the definition's: the longest of all common subsequences of words, found by trying them all."""

import random
from itertools import combinations

import pytest

from datadreamer_like.errors import DataError, EmptyDataset
from datadreamer_like.evaluation import exact_match, rouge_l, win_rate


def longest_common(first: list[str], second: list[str]) -> int:
    """By the definition: the longest choice of words of one text that is also a choice of words of the other."""
    for size in range(min(len(first), len(second)), 0, -1):
        if {*combinations(first, size)} & {*combinations(second, size)}:
            return size
    return 0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    generator = random.Random(1)
    for _ in range(150):
        first, second = (generator.choices("abcd", k=generator.randint(0, 8)) for _ in range(2))
        common = longest_common(first, second)
        precision, recall = common / max(1, len(first)), common / max(1, len(second))
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)
        assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(rouge_l(" ".join(second), " ".join(first)))


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("police kill the gunman", "police killed the gunman", 0.75),  # the examples of the paper
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("Same, TEXT!", "same text", 1.0),
        ("", "same text", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_rouge_l_of_known_texts(answer: str, reference: str, expected: float):
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_win_rate_and_exact_match_refuse_what_does_not_pair():
    assert exact_match(["a\n", "b"], ["a", "c"]) == 0.5
    assert win_rate([1.0, 1.0], [1.0, 0.0]) == 0.75
    for score in (exact_match, win_rate):
        with pytest.raises(DataError, match="1 values and 2 to compare with"):
            score(["a"], ["a", "b"])  # type: ignore[list-item]
        with pytest.raises(EmptyDataset):
            score([], [])
