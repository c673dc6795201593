"""Lazily generated rows of a step's `run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# What a step's author returns is offered in one place.
from datadreamer_like.graph.origin import From as From
from datadreamer_like.graph.origin import Traced as Traced

Values = Callable[[], Iterable[Any]] | Iterable[Any]


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
