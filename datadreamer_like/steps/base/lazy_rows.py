"""Rows that a step's `run` generates lazily, and where they came from, as the step states it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datadreamer_like.graph.origin import INPUT, Every

Values = Callable[[], Iterable[Any]] | Iterable[Any]

RowsFrom = range | Every | Sequence[int | None] | Sequence[Sequence[int]] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class From:
    """One of the sources that rows came from, as a step states it.

    Attributes:
        source: Name of an input, a column, or the node itself.
        rows: For each row the position of the source's row (None for no row), or a list of positions;
            `Every(positions)` where all rows came from the same ones. By default the row of the same position.
        role: What the source's rows were: `input`, `example`, `document` or the like.
    """

    source: Any
    rows: RowsFrom | None = None
    role: str = INPUT


class Traced:
    """Rows, or a batch of them, with the rows that they came from. `run` returns it, or yields it as a batch.

    Args:
        value: The rows, in any form that `run` may return.
        *sources: Where they came from.

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

    @property
    def stays_lazy(self) -> bool:
        """Whether rows are generated in each pass; an iterator gives its rows once, so they are kept."""
        return not self.save and not isinstance(self.value, Iterator)


class LazyRows(_Lazy):
    """Rows that a step generates lazily.

    An iterator, which can be read only once, is read at once and its rows are kept.

    Args:
        value: A generator function, an iterator, or an `IterableDataset` that yields rows: dictionaries, tuples in the
            order of the outputs, or single values where there is one output.
        total_num_rows: How many rows there will be, where that is known.
        auto_progress: Count the rows as progress.
        save: Generate all rows now and keep them on disk.
        save_writer_batch_size: Rows written at a time.
        row_by_row: Each row comes from the inputs' row of the same position, for `trace`.
        like: Schema of columns that the rows continue under the same names: they keep class names, images and pickles.
    """


class LazyRowBatches(_Lazy):
    """Batches of rows that a step generates lazily; those of an iterator are read at once, as with `LazyRows`.

    Args:
        value: A generator function or iterator that yields batches: a dictionary of columns, a list of rows, or a tuple
            of columns in the order of the outputs. `Traced` around a batch says where its rows came from.
        total_num_rows: How many rows there will be, where that is known.
        auto_progress: Count the rows as progress.
        save: Generate all rows now and keep them on disk.
        save_writer_batch_size: Rows written at a time.
        row_by_row: Each row comes from the inputs' row of the same position, for `trace`; `Traced` overrides it.
        like: Schema of columns that the rows continue under the same names: they keep class names, images and pickles.
    """
