"""Vectors by their cosine, searched exactly in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from datadreamer_like.errors import DataError, EmptyDataset
from datadreamer_like.graph.rows import Table
from datadreamer_like.models.embedders.embedder import Embedder

from ..base.step import Step
from .row_filter import texts_of

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_BLOCK = 1024
_ROUNDING = 1e-6
"""How far the cosine of float32 vectors may be below the true one: equal vectors reach a threshold of 1."""


def reaches(cosines: Any, threshold: float) -> Any:
    """Returns whether cosines are at least a threshold, up to rounding."""
    return cosines >= threshold - _ROUNDING


def register_embedding(step: Step) -> None:
    """Registers the arguments of a step that compares rows by their vectors."""
    step.register_arg("threshold", required=False, default=0.9, type=float, help="Cosine from which rows are equal.")
    step.register_arg("embedder", required=False, type=Embedder, help="The model, if the inputs are texts.")


def vectors_of(step: Step, table: Table, column: str) -> Floats:
    """Returns the normalized vectors [rows, dims] of a table's column; zeros for a missing text or vector.

    Texts are embedded by the step's argument `embedder`.

    Raises:
        DataError: A value is neither text nor vector, dimensions differ, or a number is not finite.
        EmptyDataset: All values are missing.
    """
    embedder, found = step.args["embedder"], None
    place = 0
    for values in _batches(step, table, column):
        known = [row for row, value in enumerate(values) if value is not None]
        given = [values[row] for row in known]
        if known and embedder is not None:
            given = embedder.run(given)
        if known:
            vectors = _as_array(given, [place + row for row in known], f'"{step.name}"', found)
            if found is None:
                found = np.zeros((len(table), vectors.shape[1]), dtype=np.float32)
            found[place + np.array(known)] = vectors
        place += len(values)
    if found is None:
        raise EmptyDataset(f'"{step.name}": all values of "{column}" are missing, so there is nothing to compare.')
    return found


def _batches(step: Step, table: Table, column: str) -> Iterator[list[Any]]:
    if step.args["embedder"] is not None:
        yield from texts_of(table, column, f'"{step.name}"')
        return
    for batch in table.columns([column]).batches():
        yield batch.column(0).to_pylist()


def _as_array(given: Any, rows: list[int], what: str, earlier: Floats | None) -> Floats:
    dims = len(given[0]) if hasattr(given[0], "__len__") and not isinstance(given[0], str) else None
    if dims is None:
        advice = ' Give an embedder: args={"embedder": ...}.' if isinstance(given[0], str) else ""
        raise DataError(f"{what}: the inputs have {given[0]!r:.100}; expected vectors of numbers.{advice}")
    known = dims if earlier is None else earlier.shape[1]
    wrong = next((place for place, vector in enumerate(given) if len(vector) != known), None)
    if wrong is not None:
        raise DataError(
            f"{what}: the vector of row {rows[wrong]} has {len(given[wrong])} dimensions; the first has {known}."
        )
    vectors = np.asarray(given, dtype=np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = rows[int(finite.argmin())]
        raise DataError(f"{what}: the vector of row {row} has a number that is missing or not finite.")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0).astype(np.float32)
    return unit


class EmbeddingIndex:
    """Vectors that were added, with their positions, for exact search by cosine."""

    def __init__(self, dims: int) -> None:
        self._vectors = np.empty((_BLOCK, dims), dtype=np.float32)
        self._places = np.empty(_BLOCK, dtype=np.int64)
        self._size = 0

    def add(self, places: Ints, vectors: Floats) -> None:
        """Adds normalized vectors [rows, dims] by their positions [rows]."""
        size = self._size + len(places)
        if size > len(self._places):
            room = max(size, 2 * len(self._places))
            self._vectors = np.resize(self._vectors, (room, self._vectors.shape[1]))
            self._places = np.resize(self._places, room)
        self._vectors[self._size : size], self._places[self._size : size] = vectors, places
        self._size = size

    def nearest(self, vectors: Floats) -> tuple[Ints, Floats]:
        """Returns for each vector the position of the closest one, -1 if there is none, and the cosine."""
        places, cosines = np.full(len(vectors), -1), np.full(len(vectors), -np.inf, dtype=np.float32)
        for start in range(0, self._size, 16 * _BLOCK):
            stop = min(self._size, start + 16 * _BLOCK)
            products = vectors @ self._vectors[start:stop].T
            best = products.argmax(axis=1)
            highest = products[np.arange(len(vectors)), best]
            closer = highest > cosines
            places[closer], cosines[closer] = self._places[start + best[closer]], highest[closer]
        return places, np.minimum(cosines, 1.0)

    def kept_among(self, vectors: Floats, order: Ints, threshold: float) -> Iterator[tuple[int, tuple[int, float]]]:
        """Adds the vectors at positions in `order` that are below the threshold from all added before.

        Yields the others' positions, each with the position of the closest one added before and the cosine.
        """
        for start in range(0, len(order), _BLOCK):
            rows = order[start : start + _BLOCK]
            block = vectors[rows]
            places, cosines = self.nearest(block)
            within = np.minimum(block @ block.T, 1.0)
            is_kept = np.zeros(len(rows), dtype=bool)
            for row in range(len(rows)):
                # Those of the block that are kept, and come before.
                earlier = np.where(is_kept, within[row], -np.inf)
                best = int(earlier.argmax())
                if earlier[best] > cosines[row]:
                    places[row], cosines[row] = rows[best], earlier[best]
                is_kept[row] = not reaches(cosines[row], threshold)
                if not is_kept[row]:
                    yield int(rows[row]), (int(places[row]), float(cosines[row]))
            self.add(rows[is_kept], block[is_kept])
