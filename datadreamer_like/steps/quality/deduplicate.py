"""Dropping duplicates: equal texts, texts that share most of their n-grams, texts of the same meaning."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DataError, check_number
from datadreamer_like.graph.rows import Table

from .embedding_index import EmbeddingIndex, register_embedding, vectors_of
from .minhash_index import MinHashIndex, register_minhash
from .normal_form import normalized
from .row_filter import Bools, Judged, RowFilter, column_of_same_step

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class Duplicates(RowFilter):
    """Base of steps that keep one row of each group of duplicates."""

    verdict_columns: ClassVar[dict[str, str]] = {
        "reason": "Why the row is rejected; None for a row that is not.",
        "cluster": "Position among the inputs of the row that is kept of the group.",
        "similarity": "How similar the row is to that one, up to 1.",
    }

    rejected_as: ClassVar[str]
    """What a rejected row is, for its reason."""

    def setup(self) -> None:
        """Registers the shared names."""
        super().setup()
        what = "Numbers of the same step; of duplicates, the row with the highest is kept. By default the first row."
        self.register_input("scores", required=False, help=what)

    def configure(self) -> None:
        """Checks that the scores are of the same step."""
        super().configure()
        column_of_same_step(self, "scores")

    def clusters(self, table: Table, order: Ints) -> tuple[Ints, Floats]:
        """Returns for each row [rows] the position of the row that is kept for it, and the similarity to that one.

        Rows that come first in `order` are kept. A subclass writes this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no clusters().")

    def judge(self, table: Table) -> Judged:
        """Finds the duplicates."""
        cluster, similarity = self.clusters(table, self._order(table))
        is_rejected = cluster != np.arange(len(table))
        reason = pa.array([self.rejected_as]).take(pa.array(np.where(is_rejected, 0, -1), mask=~is_rejected))
        columns = {"reason": reason, "cluster": pa.array(cluster), "similarity": pa.array(similarity)}
        return Judged(is_rejected, columns)

    def _order(self, table: Table) -> Ints:
        name = column_of_same_step(self, "scores")
        if name is None:
            return np.arange(len(table))
        column = table.columns([name]).whole().column(0)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
            raise DataError(f'"{self.name}": scores are of type {column.type}; they must be numbers.')
        scores = column.cast(pa.float64()).to_numpy()  # missing ones are NaN, which comes last
        return np.argsort(-scores, kind="stable").astype(np.int64)


class Deduplicate(Duplicates):
    """Keeps one row of each group with the same text.

    Inputs: `inputs` (texts), `scores` (optional). Args: `normalize` (compare texts in NFKC form, without regard to case
    and to the amount of white space), `drop`. Outputs: all columns of the step that the inputs come from.

    The first row of a group is kept; with `scores` the one with the highest, of equal ones the first. A missing text is
    no duplicate. `step.rejected` has the other rows, with a `reason` and their `cluster`: the position among the inputs
    of the row that was kept. With `drop=False` all rows are kept, with these columns.

    Texts are compared by 128-bit hashes: memory is a few dozen bytes a row, and the chance of a false duplicate among a
    million rows is 1e-26.

    Example:
        >>> once = Deduplicate("Once", inputs={"inputs": rows.output["text"]})  # doctest: +SKIP
        >>> once.rejected.head()  # doctest: +SKIP
    """

    rejected_as = "exact duplicate"

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        what = "Compare texts without regard to case and the amount of white space."
        self.register_arg("normalize", required=False, default=True, type=bool, help=what)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"inputs": ["A cat", "a  cat", "a dog"]}, "args": {}}

    def clusters(self, table: Table, order: Ints) -> tuple[Ints, Floats]:
        """Groups equal texts."""
        clean = normalized if self.args["normalize"] else str
        digests, known = bytearray(), array("q")
        for row, text in enumerate(self.texts(table)):
            if text is not None:
                known.append(row)
                digests += hashlib.blake2b(clean(text).encode(), digest_size=16).digest()
        rows, hashes = np.frombuffer(known, dtype=np.int64), np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        rank = np.empty(len(table), dtype=np.int64)
        rank[order] = np.arange(len(table))
        # Rows of equal texts follow each other, the one to keep first.
        line = np.lexsort((rank[rows], hashes[:, 1], hashes[:, 0]))
        ordered = hashes[line]
        is_first = np.ones(len(line), dtype=bool)
        is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        cluster = np.arange(len(table))
        cluster[rows[line]] = rows[line[np.maximum.accumulate(np.where(is_first, np.arange(len(line)), 0))]]
        return cluster, np.ones(len(table), dtype=np.float32)


class DeduplicateByMinHash(Duplicates):
    """Keeps rows whose texts share few n-grams with those kept before: near-duplicates by MinHash, Broder 1997.

    Inputs: `inputs` (texts), `scores` (optional). Args: `threshold` (Jaccard similarity of the sets of n-grams, 0 to
    1), `ngrams` ("words" or "characters"), `n`, `num_perm`, `seed`, `drop`. Outputs: all columns of the step that the
    inputs come from.

    A row is dropped if a row kept before it is at least as similar as `threshold`; rows are looked at in order, those
    with the highest `scores` first. Candidates come from locality-sensitive hashing of `num_perm` MinHash values (of
    the library rensa), and each is checked by its true Jaccard similarity, so no row is dropped that is less similar. A
    pair at the threshold is missed with a chance of at most 5 %, of more similar ones far less: the exact number is in
    the data card. Of a short text few n-grams are left when one word differs: use characters, or a lower threshold.

    `step.rejected` and `drop=False` are as in `Deduplicate`, with the `similarity` to the row that was kept.

    Raises:
        MissingExtra: rensa is not installed: `pip install "datadreamer-like[quality]"`.

    Example:
        >>> args = {"threshold": 0.7, "ngrams": "words", "n": 3}  # doctest: +SKIP
        >>> unique = DeduplicateByMinHash("Unique", inputs={"inputs": rows.output["text"]}, args=args)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: Chinese and Japanese characters are words
    rejected_as = "near-duplicate"

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        register_minhash(self)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        texts = ["the cat sat on the mat today", "the cat sat on the mat", "a dog ran after the ball"]
        return {"inputs": {"inputs": texts}, "args": {}}

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        MinHashIndex.check(self)

    def clusters(self, table: Table, order: Ints) -> tuple[Ints, Floats]:
        """Looks up each row among those kept before."""
        index = MinHashIndex.of(self, table, self._inputs["inputs"].column_names[0])
        cluster, similarity = np.arange(len(table)), np.ones(len(table), dtype=np.float32)
        in_order = table.select(order) if "scores" in self._inputs else table
        for row, text in zip(order.tolist(), self.texts(in_order), strict=True):
            if text is not None:
                sketch = index.sketch(text)
                found = index.nearest(sketch)
                if found is None:
                    index.add(row, sketch)
                else:
                    cluster[row], similarity[row] = found
        return cluster, similarity


class DeduplicateByEmbedding(Duplicates):
    """Keeps rows whose embeddings are far enough from those kept before: semantic duplicates.

    Inputs: `inputs` (vectors, or texts if an `embedder` is given), `scores` (optional). Args: `threshold` (cosine, at
    most 1), `embedder`, `drop`. Outputs: all columns of the step that the inputs come from.

    A row is dropped if the cosine of its vector and one kept before it is at least `threshold`; rows are looked at in
    order, those with the highest `scores` first. The search is exact, in blocks: time grows with the rows times the
    rows kept, memory with the rows. A missing text or vector is no duplicate. Close in idea to SemDeDup, Abbas et al.
    2023, arXiv:2303.09540, which keeps one row of each close group within clusters.

    `step.rejected` and `drop=False` are as in `Deduplicate`, with the cosine as `similarity`.

    Example:
        >>> args = {"embedder": embedder, "threshold": 0.95}  # doctest: +SKIP
        >>> distinct = DeduplicateByEmbedding("Distinct", {"inputs": rows.output["text"]}, args)  # doctest: +SKIP
    """

    result_version: ClassVar[int] = 2  # 2: equal vectors reach a threshold of 1
    rejected_as = "semantic duplicate"

    def setup(self) -> None:
        """Registers the step's names."""
        super().setup()
        register_embedding(self)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"inputs": {"inputs": [[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]}, "args": {}}

    def configure(self) -> None:
        """Checks the arguments."""
        super().configure()
        check_number(self.args["threshold"], f'"{self.name}": threshold', -1, 1)

    def clusters(self, table: Table, order: Ints) -> tuple[Ints, Floats]:
        """Looks up each row among those kept before."""
        vectors = vectors_of(self, table, self._inputs["inputs"].column_names[0])
        cluster, similarity = np.arange(len(table)), np.ones(len(table), dtype=np.float32)
        index = EmbeddingIndex(vectors.shape[1])
        has_direction: Bools = np.abs(vectors).sum(axis=1) > 0
        for row, found in index.kept_among(vectors, order[has_direction[order]], self.args["threshold"]):
            cluster[row], similarity[row] = found
        return cluster, similarity
