"""Dropping rows that are in a test set: by shared n-grams, by MinHash, by embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DataError, EmptyDataset, check_number
from datadreamer_like.graph.rows import Table
from datadreamer_like.models.words import words_of

from ..base.columns import whole
from ..operations.transforms import table_of
from .embedding_index import EmbeddingIndex, reaches, register_embedding, vectors_of
from .minhash_index import MinHashIndex, register_minhash
from .normal_form import normalized
from .row_filter import Bools, Judged, RowFilter

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_BLOCK = 1024


class Contamination(RowFilter):
    """Base of steps that reject rows which are in a test set."""

    verdict_columns: ClassVar[dict[str, str]] = {
        "reason": "Why the row is rejected; None for a row that is not.",
        "found_in": "Position of the closest row of the test set; None where there is none.",
        "similarity": "How similar the row is to the test set, up to 1; None where there is no similar row.",
    }

    whole_inputs: ClassVar[frozenset[str]] = frozenset({"against"})

    def setup(self) -> None:
        """Registers the shared names."""
        super().setup()
        self.register_input("against", help="The same of the rows that must not be trained on: a test set.")

    def matches(self, table: Table, against: Table) -> tuple[Ints, Floats]:
        """Returns for each row the position of the closest row of the test set, -1 for none, and the similarity.

        A subclass writes this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no matches().")

    def is_contaminated(self, similarity: Floats) -> Bools:
        """Returns which rows with a match are rejected: by default all."""
        return np.ones(len(similarity), dtype=bool)

    def judge(self, table: Table) -> Judged:
        """Compares the rows with the test set."""
        column = self._inputs["against"]
        against = table_of(whole(column).rows)
        if not len(against):
            raise EmptyDataset(f'"{self.name}": "{column.step.name}" has no rows to compare with.')
        places, similarity = self.matches(table, against)
        has_match = places >= 0
        is_rejected = has_match & self.is_contaminated(similarity)
        hit = len(np.unique(places[is_rejected]))
        counts = f"{is_rejected.sum():,} of {len(table):,} rows match at least {hit:,} of {len(against):,}"
        self.register_data_card("Contamination", f'{counts} rows of "{column.step.name}"')
        reason = pa.array([f'in the test set "{column.step.name}"'])
        return Judged(
            is_rejected,
            {
                "reason": reason.take(pa.array(np.where(is_rejected, 0, -1), mask=~is_rejected)),
                "found_in": pa.array(places, mask=~has_match),
                "similarity": pa.array(similarity, mask=~has_match),
            },
        )


class Decontaminate(Contamination):
    """Drops rows whose texts share n-grams of words with a test set.

    Inputs: `inputs` (texts), `against` (texts of the test set). Args: `n` (words of an n-gram), `max_overlap` (share of
    a row's words that may be in shared n-grams), `drop`. Outputs: all columns of the step that the inputs come from.

    With `n=13` and `max_overlap=0` a row is dropped for one shared n-gram, as GPT-3's training data were (Brown et al.
    2020, arXiv:2005.14165, appendix C); the share of words is as in Llama 2 (Touvron et al. 2023, arXiv:2307.09288,
    appendix A.6). Words are compared in normal form, without punctuation. A test text of fewer than `n` words is found
    only where it is a row's whole text.

    `step.rejected` has the rows that were dropped, with that share as `similarity`, and `found_in`, the position of the
    first row of the test set that has an n-gram of the row. The data card has the counts.

    Example:
        >>> texts = {"inputs": rows.output["text"], "against": test.output["text"]}  # doctest: +SKIP
        >>> clean = Decontaminate("Not in the test set", inputs=texts)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: Chinese and Japanese characters are words

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        self.register_arg("n", required=False, default=13, type=int, help="Number of words of an n-gram.")
        what = "Largest share of a row's words in shared n-grams."
        self.register_arg("max_overlap", required=False, default=0.0, type=float, help=what)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        rows, test = ["The cat sat on the mat.", "A dog ran."], ["See: the cat sat on the table.", "Another"]
        return {"inputs": {"inputs": rows, "against": test}, "args": {"n": 4}}

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        check_number(self.args["n"], f'"{self.name}": n', 1, whole=True)
        check_number(self.args["max_overlap"], f'"{self.name}": max_overlap', 0, 1)

    def is_contaminated(self, similarity: Floats) -> Bools:
        """Returns which rows share more words than allowed."""
        found: Bools = similarity > self.args["max_overlap"]
        return found

    def matches(self, table: Table, against: Table) -> tuple[Ints, Floats]:
        """Looks up each row's n-grams among those of the test set."""
        n = self.args["n"]
        found_in: dict[str, int] = {}
        column = self._inputs["against"].column_names[0]
        for place, text in enumerate(self.texts(against, column)):
            for gram in _grams(_words(text), n):
                found_in.setdefault(gram, place)
        places, similarity = np.full(len(table), -1), np.zeros(len(table), dtype=np.float32)
        for row, text in enumerate(self.texts(table)):
            words = _words(text)
            covered = np.zeros(len(words), dtype=bool)
            for start, gram in enumerate(_grams(words, n)):
                if gram in found_in:
                    covered[start : start + n] = True
                    places[row] = found_in[gram] if places[row] < 0 else places[row]
            similarity[row] = covered.mean() if len(words) else 0.0
        return places, similarity


class DecontaminateByMinHash(Contamination):
    """Drops rows whose texts are near-duplicates of a test set's, by MinHash.

    Inputs: `inputs` (texts), `against` (texts of the test set). Args: those of `DeduplicateByMinHash`, where candidates
    and the chance of a miss are explained. Outputs: all columns of the step that the inputs come from.

    `step.rejected` has the rows that were dropped, with the Jaccard `similarity` to the most similar row of the test
    set, and its position, `found_in`.

    Raises:
        MissingExtra: rensa is not installed: `pip install "datadreamer-like[quality]"`.

    Example:
        >>> texts = {"inputs": rows.output["text"], "against": test.output["text"]}  # doctest: +SKIP
        >>> clean = DecontaminateByMinHash("Unlike the test set", texts, {"threshold": 0.5})  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: Chinese and Japanese characters are words

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        register_minhash(self)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        rows, test = ["The cat sat on the mat today.", "A dog ran."], ["the cat sat on the mat", "Another"]
        return {"inputs": {"inputs": rows, "against": test}, "args": {}}

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        MinHashIndex.check(self)

    def matches(self, table: Table, against: Table) -> tuple[Ints, Floats]:
        """Looks up each row among those of the test set."""
        column = self._inputs["against"].column_names[0]
        index = MinHashIndex.of(self, against, column)
        for row, text in enumerate(self.texts(against, column)):
            if text is not None:
                index.add(row, index.sketch(text))
        places, similarity = np.full(len(table), -1), np.zeros(len(table), dtype=np.float32)
        for row, text in enumerate(self.texts(table)):
            if text is not None and (found := index.nearest(index.sketch(text))) is not None:
                places[row], similarity[row] = found
        return places, similarity


class DecontaminateByEmbedding(Contamination):
    """Drops rows whose embeddings are close to those of a test set.

    Inputs: `inputs`, `against` (vectors, or texts if an `embedder` is given). Args: `threshold` (cosine, up to 1),
    `embedder`, `drop`. Outputs: all columns of the step that the inputs come from.

    The search is exact. `step.rejected` has the rows that were dropped, with the cosine as `similarity` to the closest
    row of the test set, and its position, `found_in`.

    Example:
        >>> texts = {"inputs": rows.output["text"], "against": test.output["text"]}  # doctest: +SKIP
        >>> clean = DecontaminateByEmbedding("Unlike the test set", texts, {"embedder": embedder})  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: equal vectors reach a threshold of 1

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        register_embedding(self)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        rows, test = [[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.1], [1.0, 1.0]]
        return {"inputs": {"inputs": rows, "against": test}, "args": {}}

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        check_number(self.args["threshold"], f'"{self.name}": threshold', -1, 1)

    def is_contaminated(self, similarity: Floats) -> Bools:
        """Returns which rows reach the threshold."""
        found: Bools = reaches(similarity, self.args["threshold"])
        return found

    def matches(self, table: Table, against: Table) -> tuple[Ints, Floats]:
        """Looks up each row among those of the test set."""
        vectors, tested = (
            vectors_of(self, rows, self._inputs[name].column_names[0])
            for name, rows in (("inputs", table), ("against", against))
        )
        if vectors.shape[1] != tested.shape[1]:
            raise DataError(
                f'"{self.name}": inputs have {vectors.shape[1]} dimensions, against {tested.shape[1]}. Embed both with '
                "one model."
            )
        index = EmbeddingIndex(tested.shape[1])
        known = np.flatnonzero(tested.any(axis=1))
        index.add(known, tested[known])
        places, similarity = np.full(len(table), -1), np.zeros(len(table), dtype=np.float32)
        rows = np.flatnonzero(vectors.any(axis=1))
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            places[part], similarity[part] = index.nearest(vectors[part])
        return places, similarity


def _words(text: str | None) -> list[str]:
    return [] if text is None else words_of(normalized(text))


def _grams(words: list[str], n: int) -> list[str]:
    """Returns the n-grams of words in order; fewer words are one n-gram of a kind that longer texts do not have."""
    if len(words) < n:
        return ["\n".join(["", *words])] if words else []
    return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]
