"""Lazily generated rows of a step's `run`, and statements of their origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datadreamer_like.graph.origin import INPUT, Every

Values = Callable[[], Iterable[Any]] | Iterable[Any]

RowsFrom = range | Every | Sequence[int | None] | Sequence[Sequence[int]] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class From:
    """One origin of rows, as stated by a step.

    Attributes:
        source: Name of an input, a column, or a node.
        rows: For each row the position of its source row (None for no row), or a list of positions;
            `Every(positions)` where all rows came from the same positions. By default the row at the same position.
        role: The role of the source rows: `input`, `example`, `document` or another word.
    """

    source: Any
    rows: RowsFrom | None = None
    role: str = INPUT


class Traced:
    """Rows, or a batch of them, with their origin. Returned by `run`, or yielded as a batch.

    Args:
        value: The rows, in any form that `run` may return.
        *sources: Their origins.

    Example:
        >>> def batches(self):  # in a step with an input "texts"; keeps every second row
        ...     texts = list(self.inputs["texts"])
        ...     yield Traced({"text": texts[::2]}, From("texts", rows=range(0, len(texts), 2)))
    """

    def __init__(self, value: Any, *sources: From) -> None:
        self.value = value
        self.sources = sources


@dataclass(frozen=True)
class _Lazy:
    value: Values
    total_num_rows: int | None = None
    auto_progress: bool = True
    save: bool = False
    save_writer_batch_size: int | None = None
    row_by_row: bool = False
    like: pa.Schema | None = None


class LazyRows(_Lazy):
    """Rows that a step generates lazily; those of an iterator, which can be read only once, are read and saved at once.

    Args:
        value: A generator function, an iterator, or an `IterableDataset` that yields rows: dictionaries, tuples in the
            order of the outputs, or single values where there is one output.
        total_num_rows: The number of rows, if known.
        auto_progress: Accepted for DataDreamer scripts, as `save_writer_batch_size`.
        save: Generate all rows now and save them.
        row_by_row: Each row comes from the inputs' row at the same position, for `trace`.
        like: Schema of columns of the same names, whose class names, images and pickles are preserved.
    """


class LazyRowBatches(_Lazy):
    """Batches of rows that a step generates lazily; an iterator is read immediately, as with `LazyRows`.

    `value` is a generator function or iterator that yields batches: a dictionary of columns, a list of rows, or a tuple
    of columns in the order of the outputs. `Traced` around a batch gives the origin of its rows. The other arguments
    are those of `LazyRows`.
    """
