"""Rows that flow between steps: Arrow record batches of one schema, read again in each pass, with their origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datadreamer_like.storage.schemas import with_schema
from datadreamer_like.storage.tables import rebatched as rebatched
from datadreamer_like.storage.tables import taken_rows
from datadreamer_like.storage.values import pickled_columns, to_columns, with_features

from .node import Node
from .origin import Origin, Recorder, Stated

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, list[Any]]
"""Rows for a user's function or a model: columns as Python lists of equal length."""

BATCH_SIZE = 1000

# Larger batches are faster where rows are only moved.
_MOVED_AT_ONCE = 16_384


@dataclass(frozen=True)
class Table:
    """A view with random access: an Arrow table, in memory or on disk, and positions of rows in it.

    `indices` are these positions; None for all rows, in order.
    """

    data: pa.Table
    indices: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return self.data.num_rows if self.indices is None else len(self.indices)

    def select(self, positions: range | np.ndarray[Any, Any]) -> Table:
        """Returns a view of the rows at some positions, in that order."""
        if self.indices is None and isinstance(positions, range) and positions.step == 1:
            return Table(self.data.slice(positions.start, len(positions)))
        chosen = np.asarray(positions, dtype=np.int64)
        return Table(self.data, chosen if self.indices is None else self.indices[chosen])

    def columns(self, names: Sequence[str]) -> Table:
        """Returns a view of some columns, in that order."""
        return Table(self.data.select(list(names)), self.indices)

    def batches(self, size: int = _MOVED_AT_ONCE) -> Iterator[pa.RecordBatch]:
        """Yields the rows, at most `size` at once."""
        if self.indices is None:
            yield from self.data.to_batches(max_chunksize=size)
            return
        for start in range(0, len(self.indices), size):
            yield from taken_rows(self.data, self.indices[start : start + size]).combine_chunks().to_batches()

    def whole(self) -> pa.Table:
        """Returns the rows as one Arrow table."""
        return self.data if self.indices is None else taken_rows(self.data, self.indices)


@dataclass(frozen=True)
class Rows:
    """Immutable rows with a schema and an origin; each pass reads them again.

    Attributes:
        schema: The columns, with types as far as known. Lazy rows may have names only: types may differ between their
            batches, and the writer widens the schema over all batches.
        num_rows: Number of rows; None if it is unknown before a pass.
        read: Starts a pass of Arrow record batches.
        table: The rows with random access; None for lazy rows.
        sample: One of the rows, if one was already made to find the columns.
    """

    schema: pa.Schema
    num_rows: int | None
    read: Callable[[], Iterator[pa.RecordBatch]]
    origin: Origin = field(default_factory=Origin)
    node: Node | None = None
    table: Table | None = None
    sample: pa.RecordBatch | None = None

    @classmethod
    def of_table(cls, table: Table | pa.Table, origin: Origin | None = None, node: Node | None = None) -> Rows:
        """Returns rows of a table."""
        taken = Table(table) if isinstance(table, pa.Table) else table
        return cls(taken.data.schema, len(taken), taken.batches, origin or Origin(), node, taken)

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Rows:
        """Returns the rows of a `datasets.Dataset`."""
        data: pa.Table = dataset._data.table
        indices = None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64)
        return cls.of_table(Table(with_schema(data, with_features(data.schema, dataset.features)), indices))

    @classmethod
    def recorded(
        cls,
        names: Sequence[str] | pa.Schema,
        num_rows: int | None,
        read: Callable[[], Iterator[tuple[pa.RecordBatch, Stated | None]]],
    ) -> Rows:
        """Returns lazy rows whose origin is learned as they are read.

        `names` are their schema, or the names of the columns. `read` starts a pass of batches, each with its origin, or
        None if that is unknown.
        """
        origin = Origin.learned()

        def batches() -> Iterator[pa.RecordBatch]:
            recorder = Recorder(origin)
            for batch, stated in read():
                recorder.add(batch.num_rows, stated)
                yield batch

        return cls(names if isinstance(names, pa.Schema) else untyped(names), num_rows, batches, origin)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    @property
    def pickled(self) -> bool:
        """Whether a column is known to hold pickled Python objects."""
        return bool(pickled_columns(self.schema))

    def batches(self, size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields the rows as Python values, at most `size` at once."""
        for batch in self.read():
            for start in range(0, batch.num_rows, size):
                yield to_columns(batch.slice(start, size))

    def select_columns(self, names: Sequence[str]) -> Rows:
        """Returns the rows with some of their columns, in that order."""
        wanted = list(names)
        if self.table is not None:
            taken = self.table.columns(wanted)
            return replace(self, schema=taken.data.schema, read=taken.batches, table=taken)
        schema = pa.schema([self.schema.field(name) for name in wanted])
        return replace(self, schema=schema, read=lambda: (with_columns(batch, schema) for batch in self.read()))

    def renamed(self, names: dict[str, str]) -> Rows:
        """Returns the rows with renamed columns."""
        new = [names.get(name, name) for name in self.columns]
        if new == self.columns:
            return self
        schema = pa.schema([column.with_name(name) for column, name in zip(self.schema, new, strict=True)])
        if self.table is not None:
            taken = Table(self.table.data.rename_columns(new), self.table.indices)
            return replace(self, schema=schema, read=taken.batches, table=taken)

        def read() -> Iterator[pa.RecordBatch]:
            for batch in self.read():
                yield batch.rename_columns([names.get(name, name) for name in batch.schema.names])

        return replace(self, schema=schema, read=read)

    def values_at(self, index: int) -> Batch:
        """Returns one row as columns of one value; lazy rows are read up to it."""
        if self.table is not None and 0 <= index < len(self.table):
            return to_columns(self.table.select(range(index, index + 1)).whole())
        start = 0
        for batch in self.read():
            if index < start + batch.num_rows:
                return to_columns(batch.slice(index - start, 1))
            start += batch.num_rows
        raise IndexError(index)


def untyped(names: Iterable[str]) -> pa.Schema:
    """Returns a schema of columns of unknown types."""
    return pa.schema([(name, pa.null()) for name in names])


def with_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns a schema's columns of a batch, in the schema's order; missing columns are None."""
    if batch.schema.names == schema.names:
        return batch
    fields = [batch.schema.field(column.name) if column.name in batch.schema.names else column for column in schema]
    arrays = [
        batch.column(column.name) if column.name in batch.schema.names else pa.nulls(batch.num_rows, column.type)
        for column in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
