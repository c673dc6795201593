"""Texts by the n-grams they share: locality-sensitive hashing of MinHash values, and exact Jaccard similarity."""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from typing import Any, NamedTuple

from datadreamer_like.errors import DefinitionError, check_number, did_you_mean, require_extra
from datadreamer_like.graph.rows import Table
from datadreamer_like.models.words import words_of

from ..base.step import Step
from .normal_form import normalized

_RECALL = 0.95
_KEPT_SHINGLES = 4096


class Sketch(NamedTuple):
    """A text's n-grams and their MinHash signature."""

    shingles: Set[str]
    signature: Any


def register_minhash(step: Step) -> None:
    """Registers the arguments of an index, which `MinHashIndex.check` checks."""
    step.register_arg("threshold", required=False, default=0.7, type=float, help="Jaccard similarity of duplicates.")
    step.register_arg("ngrams", required=False, default="words", type=str, help='N-grams of "words" or "characters".')
    step.register_arg("n", required=False, default=3, type=int, help="Length of the n-grams.")
    step.register_arg("num_perm", required=False, default=128, type=int, help="Number of MinHash values of a text.")
    step.register_arg("seed", required=False, default=0, type=int, help="Seed of the MinHash functions.")


class MinHashIndex:
    """Finds the most similar of the texts added so far, if it reaches a threshold.

    Args:
        text_at: Returns the text at a position that was added, to compare it.
        threshold: Least Jaccard similarity of the sets of n-grams, over 0 to 1.
        ngrams: "words" or "characters".
        n: Length of the n-grams; a shorter text is one n-gram.
        num_perm: Number of MinHash values. More find more of the similar pairs, for more time.
        seed: Of the hash functions.
    """

    def __init__(
        self, text_at: Callable[[int], str], threshold: float, ngrams: str, n: int, num_perm: int, seed: int
    ) -> None:
        from rensa import RMinHash, RMinHashLSH

        self.threshold, self.ngrams, self.n = threshold, ngrams, n
        bands, rows = bands_of(threshold, num_perm)
        self._new, self._num_perm, self._seed = RMinHash, bands * rows, seed
        self._tables = RMinHashLSH(threshold=threshold, num_perm=bands * rows, num_bands=bands)
        self._shingles_at = functools.lru_cache(_KEPT_SHINGLES)(lambda place: self.shingles(text_at(place)))

    @classmethod
    def of(cls, step: Step, table: Table, column: str) -> MinHashIndex:
        """Returns an index with the arguments of a step, for the texts of a table's column."""
        args = step.args
        bands, rows = bands_of(args["threshold"], args["num_perm"])
        missed = (1 - args["threshold"] ** rows) ** bands
        misses = f"misses {100 * missed:.1f} % of pairs at the threshold"
        step.register_data_card("MinHash", f"{bands} bands of {rows}; {misses}")
        values, chosen = table.data.column(column), table.indices

        def text_at(place: int) -> str:
            return values[place if chosen is None else int(chosen[place])].as_py()  # type: ignore[no-any-return]

        return cls(text_at, args["threshold"], args["ngrams"], args["n"], args["num_perm"], args["seed"])

    @staticmethod
    def check(step: Step) -> None:
        """Checks the arguments that `register_minhash` registers.

        Raises:
            MissingExtra: rensa is not installed.
            DefinitionError: An argument is out of range.
        """
        require_extra("quality", "rensa", what=type(step).__name__)
        what, kinds = f'"{step.name}"', ("words", "characters")
        check_number(step.args["threshold"], f"{what}: threshold", 0, 1, over=True)
        check_number(step.args["n"], f"{what}: n", 1, whole=True)
        check_number(step.args["num_perm"], f"{what}: num_perm", 16, 4096, whole=True)
        check_number(step.args["seed"], f"{what}: seed", 0, 2**32, whole=True)
        ngrams = step.args["ngrams"]
        if ngrams not in kinds:
            raise DefinitionError(
                f'{what}: ngrams is {ngrams!r}; expected "words" or "characters".{did_you_mean(str(ngrams), kinds)}'
            )

    def shingles(self, text: str) -> Set[str]:
        """Returns the n-grams of a text in normal form; those of words without punctuation."""
        clean = normalized(text)
        if self.ngrams == "characters":
            return {clean[start : start + self.n] for start in range(max(1, len(clean) - self.n + 1))}
        words = words_of(clean) or [clean]
        if len(words) <= self.n:
            return {" ".join(words)}
        return {*map(" ".join, zip(*(words[start:] for start in range(self.n)), strict=False))}

    def sketch(self, text: str) -> Sketch:
        """Returns what is looked up and added of a text."""
        shingles, signature = self.shingles(text), self._new(self._num_perm, self._seed)
        signature.update(list(shingles))
        return Sketch(shingles, signature)

    def nearest(self, sketch: Sketch) -> tuple[int, float] | None:
        """Returns position and Jaccard similarity of the most similar text, the first added of equal ones."""
        best: tuple[float, int] | None = None
        for place in self._tables.query(sketch.signature):
            similarity = jaccard(sketch.shingles, self._shingles_at(place))
            if similarity >= self.threshold and (best is None or (similarity, -place) > best):
                best = similarity, -place
        return None if best is None else (-best[1], best[0])

    def add(self, place: int, sketch: Sketch) -> None:
        """Adds the text at a position."""
        self._tables.insert(place, sketch.signature)


def bands_of(threshold: float, num_perm: int) -> tuple[int, int]:
    """Returns the number of bands and of values in each.

    A pair of similarity s shares a band with a probability of `1 - (1 - s^rows)^bands` (Leskovec, Rajaraman, Ullman,
    Mining of Massive Datasets, section 3.4): rows are as many as give 95 % at the threshold, which makes the fewest
    candidates.
    """
    for rows in range(num_perm, 1, -1):
        bands = num_perm // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return num_perm, 1


def jaccard(a: Set[str], b: Set[str]) -> float:
    """Returns the size of the intersection of two sets by that of their union."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
