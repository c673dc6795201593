"""Finding the texts of a growing collection whose ROUGE-L with a new one is at least a threshold, without missing any.

A pair can only reach the threshold if it shares enough words, so each text is looked up by its rarest ones alone (the
prefix filter of Chaudhuri et al. 2006, "A Primitive Operator for Similarity Joins"), and only pairs that are found that
way are compared, by the bit-parallel longest common subsequence of Hyyrö 2004.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

_ROUNDING = 1e-9  # a score that is the threshold may be rounded below it


class RougeIndex:
    """Texts as lists of words, by what they share with others.

    Args:
        texts: The words of all texts that will ever be added or looked up, which decide which words are rare.
        threshold: Lowest ROUGE-L that `find` finds, above 0 and at most 1.
    """

    def __init__(self, texts: Iterable[Sequence[str]], threshold: float) -> None:
        self.threshold = threshold
        counts = Counter(word for words in texts for word in words)
        self._rank = {word: rank for rank, (word, _) in enumerate(sorted(counts.items(), key=lambda each: each[1]))}
        self._texts: list[list[int]] = []
        self._masks: list[dict[int, int]] = []
        self._found_by: dict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, words: Sequence[str]) -> None:
        """Adds a text, whose number is how many were added before it."""
        number, codes = len(self._texts), [self._rank[word] for word in words]
        masks: dict[int, int] = {}
        for place, code in enumerate(codes):
            masks[code] = masks.get(code, 0) | 1 << place
        self._texts.append(codes)
        self._masks.append(masks)
        for key in self._prefix(codes):
            self._found_by[key].append(number)

    def find(self, words: Sequence[str]) -> tuple[int, float] | None:
        """Returns the number of the most similar text, of equal ones the first, and the score; None below the limit."""
        codes = [self._rank[word] for word in words]
        shortest, longest = self._lengths(len(codes))
        best: tuple[int, float] | None = None
        for number in sorted({number for key in self._prefix(codes) for number in self._found_by.get(key, ())}):
            size = len(self._texts[number])
            if not shortest <= size <= longest:
                continue
            score = 2 * _common(codes, self._masks[number], size) / (len(codes) + size)
            if score >= self.threshold - _ROUNDING and (best is None or score > best[1]):
                best = number, score
        return best

    def _lengths(self, size: int) -> tuple[int, int]:
        """The numbers of words of texts that can reach the threshold: the subsequence has at most the shorter one's."""
        low = self.threshold * size / (2 - self.threshold)
        return math.ceil(low - _ROUNDING), math.floor(size * (2 - self.threshold) / self.threshold + _ROUNDING)

    def _prefix(self, codes: Sequence[int]) -> list[tuple[int, int]]:
        """The rarest words, each with its how-many-th occurrence: two texts above the threshold share one of them."""
        shared = math.ceil(self.threshold * (len(codes) + self._lengths(len(codes))[0]) / 2 - _ROUNDING)
        keys, seen = [], Counter[int]()
        for code in sorted(codes)[: len(codes) - shared + 1]:
            keys.append((code, seen[code]))
            seen[code] += 1
        return keys


def _common(codes: Sequence[int], masks: dict[int, int], size: int) -> int:
    """Length of the longest common subsequence with a text of so many words, given the places of each word as bits."""
    full = row = (1 << size) - 1
    for code in codes:
        mask = masks.get(code)
        if mask is not None:
            kept = row & mask
            row = ((row + kept) | (row - kept)) & full
    return size - row.bit_count()
