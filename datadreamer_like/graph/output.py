"""The datasets and columns of a step's output: thin views of `Rows`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DefinitionError, NoSuchRow, UnknownColumn, did_you_mean
from datadreamer_like.storage.tables import as_dataset
from datadreamer_like.storage.values import PICKLED, features_of, to_batch, to_columns

from .node import Node
from .origin import Origin
from .rows import BATCH_SIZE as BATCH_SIZE
from .rows import Batch as Batch
from .rows import Rows, untyped

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetInfo, IterableDataset


class OutputDatasetMixin:
    """Base of datasets and columns.

    Attributes:
        pickled: Whether values may be pickled Python objects, restored when they are read.
    """

    _step: Node
    pickled: bool

    @property
    def step(self) -> Node:
        """The step that made this dataset."""
        return self._step

    @property
    def rows(self) -> Rows:
        """The rows as Arrow batches."""
        raise NotImplementedError

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return self.rows.columns

    @property
    def num_columns(self) -> int:
        """Number of columns."""
        return len(self.column_names)

    @property
    def num_rows(self) -> int | None:
        """Number of rows; None if it is unknown before they are read."""
        return self.rows.num_rows

    @property
    def info(self) -> DatasetInfo:
        """The `datasets.DatasetInfo`."""
        from datasets import DatasetInfo

        return DatasetInfo(features=features_of(self.rows.schema))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the step that made the rows."""
        return self._step.fingerprint

    def __fingerprint__(self) -> tuple[Any, ...]:
        return type(self).__name__.replace("Iterable", ""), self._step, tuple(self.column_names)

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all rows as columns of up to `batch_size` values."""
        return self.rows.batches(batch_size)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))

    def head(self, n: int = 5, shuffle: bool = False, seed: int | None = None, buffer_size: int = 1000) -> pd.DataFrame:
        """Returns some rows as a pandas DataFrame.

        Args:
            n: Number of rows.
            shuffle: Sample from the first `buffer_size` rows, instead of returning the first `n`.
            seed: Seed of the sample.
            buffer_size: Number of rows to sample from.
        """
        import pandas as pd

        wanted = max(n, buffer_size) if shuffle else n
        rows: list[tuple[Any, ...]] = []
        for batch in self.batches(min(wanted, BATCH_SIZE) or 1):
            rows += zip(*batch.values(), strict=True)
            if len(rows) >= wanted:
                break
        if shuffle:
            pool = rows[:buffer_size]
            rows = random.Random(seed).sample(pool, min(n, len(pool)))
        return pd.DataFrame(rows[:n], columns=self.column_names)

    def __repr__(self) -> str:
        rows = "?" if self.num_rows is None else self.num_rows
        return f"{type(self).__name__}({self.column_names}, num_rows={rows}, step={self._step.name!r})"

    def _check_column(self, name: str) -> None:
        if name not in self.column_names:
            raise UnknownColumn(
                f'"{self._step.name}" has no column "{name}"; it offers: {", ".join(self.column_names)}.'
                + did_you_mean(name, self.column_names)
            )

    def _check(self, step: Any, dataset: Any, kind: str) -> None:
        if not isinstance(step, Node):
            raise DefinitionError(f"{type(self).__name__} needs the step that the rows belong to, got {step!r}.")
        if not isinstance(dataset, Rows) and not callable(dataset) and type(dataset).__name__ != kind:
            raise DefinitionError(f"{type(self).__name__} takes a datasets.{kind}, got {type(dataset).__name__}.")


class OutputDatasetColumnMixin(OutputDatasetMixin):
    """Base of columns; their elements are values.

    Attributes:
        whole: The column's dataset; None for a column made by hand.
    """

    whole: OutputDatasetMixin | None = None

    def values(self) -> Iterator[Any]:
        """Yields all values."""
        for batch in self.batches():
            (values,) = batch.values()
            yield from values

    def __iter__(self) -> Iterator[Any]:
        return self.values()

    def _check(self, step: Any, dataset: Any, kind: str) -> None:
        super()._check(step, dataset, kind)
        names = dataset.columns if isinstance(dataset, Rows) else getattr(dataset, "column_names", None)
        if names is not None and len(names) != 1:
            raise DefinitionError(f"{type(self).__name__} takes one column, got {', '.join(names) or 'none'}.")


class OutputDataset(OutputDatasetMixin):
    """A dataset with random access to rows.

    Args:
        step: The step that it belongs to.
        dataset: A `datasets.Dataset`, `Rows` of a table, or a function that opens them on first use.
        pickled: Whether values may be pickled Python objects, to be restored when read.
        columns: Names of the columns, if known without opening the rows.
        num_rows: Number of rows, if known without opening them.
    """

    def __init__(
        self,
        step: Node,
        dataset: Dataset | Rows | Callable[[], Rows],
        pickled: bool = False,
        *,
        columns: list[str] | None = None,
        num_rows: int | None = None,
    ) -> None:
        self._check(step, dataset, "Dataset")
        self._step = step
        self.pickled = pickled
        self._given = dataset
        self._rows: Rows | None = dataset if isinstance(dataset, Rows) else None
        self._dataset: Dataset | None = None if self._rows is not None or callable(dataset) else dataset
        self._columns = columns
        self._num_rows = num_rows

    @property
    def rows(self) -> Rows:
        """The rows as Arrow batches."""
        if self._rows is None:
            given: Any = self._given
            rows = given() if callable(given) else Rows.of_dataset(given)
            self._rows = _marked(replace(rows, node=rows.node or self._step), self.pickled)
        return self._rows

    @property
    def dataset(self) -> Dataset:
        """The rows as a `datasets.Dataset`."""
        if self._dataset is None:
            table = self.rows.table
            assert table is not None
            self._dataset = as_dataset(table.data, table.indices, self._step.fingerprint)
        return self._dataset

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns) if self._columns is not None else self.rows.columns

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._num_rows if self._num_rows is not None else self.rows.num_rows or 0

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            self._check_column(key)
            column = OutputDatasetColumn(
                self._step,
                partial(self._only, key),
                self.pickled,
                columns=[key],
                num_rows=self.num_rows,
            )
            column.whole = self
            return column
        found = self._taken(key)
        return {name: values[0] for name, values in found.items()} if _is_index(key) else found

    def _only(self, column: str) -> Rows:
        return self.rows.select_columns([column])

    def _taken(self, key: Any) -> Batch:
        table = self.rows.table
        assert table is not None
        size = len(table)
        if _is_index(key):
            if not -size <= key < size:
                raise NoSuchRow(f'"{self._step.name}" has no row {key}; it has {size:,} rows.')
            chosen: Any = range(key % size, key % size + 1)
        elif isinstance(key, slice):
            chosen = range(size)[key]
        else:
            positions = np.asarray(list(key), dtype=np.int64)
            if len(positions) and not (-size <= positions.min() and positions.max() < size):
                raise NoSuchRow(f'"{self._step.name}" has no row {positions.max()}; it has {size:,} rows.')
            chosen = np.where(positions < 0, positions + size, positions)
        return to_columns(table.select(chosen).whole())

    def save_to_disk(self, path: str, num_proc: int | None = None, num_shards: int | None = None) -> None:
        """Saves a copy that `datasets.load_from_disk` opens."""
        self.dataset.save_to_disk(path, num_proc=num_proc, num_shards=num_shards)


class OutputDatasetColumn(OutputDatasetColumnMixin, OutputDataset):
    """One column of a dataset; its elements are values instead of rows."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        (values,) = self._taken(key).values()
        return values[0] if _is_index(key) else values


class OutputIterableDataset(OutputDatasetMixin):
    """A dataset of lazy rows, generated again in each pass.

    Args:
        step: The step that it belongs to.
        dataset: A `datasets.IterableDataset`, or `Rows`.
        pickled: Whether values may be pickled Python objects, to be restored when read.
        total_num_rows: The number of rows, if known.
    """

    def __init__(
        self,
        step: Node,
        dataset: IterableDataset | Rows,
        pickled: bool = False,
        total_num_rows: int | None = None,
    ) -> None:
        self._check(step, dataset, "IterableDataset")
        self._step = step
        rows = dataset if isinstance(dataset, Rows) else rows_of_iterable(dataset)
        self.pickled = pickled or rows.pickled
        if total_num_rows is not None:
            rows = replace(rows, num_rows=max(0, total_num_rows))
        self._rows = _marked(replace(rows, node=rows.node or step), pickled)
        self._iterable: IterableDataset | None = None if isinstance(dataset, Rows) else dataset

    @property
    def rows(self) -> Rows:
        """The rows as Arrow batches."""
        return self._rows

    @property
    def total_num_rows(self) -> int | None:
        """Number of rows; None if it is unknown before they are read."""
        return self.num_rows

    @property
    def dataset(self) -> IterableDataset:
        """The rows as a `datasets.IterableDataset`."""
        if self._iterable is None:
            from datasets import IterableDataset

            self._iterable = IterableDataset.from_generator(lambda: OutputDatasetMixin.__iter__(self))
        return self._iterable

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            raise TypeError(
                f'The rows of "{self._step.name}" are generated lazily, so they have no positions. '
                "Save them first: step.save().output[i]."
            )
        self._check_column(key)
        column = OutputIterableDatasetColumn(self._step, self.rows.select_columns([key]), self.pickled)
        column.whole = self
        return column


class OutputIterableDatasetColumn(OutputDatasetColumnMixin, OutputIterableDataset):
    """One column of a dataset of lazy rows; its elements are values."""


Column = OutputDatasetColumn | OutputIterableDatasetColumn


def rows_of_iterable(dataset: IterableDataset) -> Rows:
    """Returns the rows of a `datasets.IterableDataset`."""
    names = dataset.column_names or list(next(iter(dataset), {}))

    def read() -> Iterator[pa.RecordBatch]:
        rows = iter(dataset)
        while portion := list(islice(rows, BATCH_SIZE)):
            yield to_batch({name: [row.get(name) for row in portion] for name in names})

    return Rows(untyped(names), None, read, Origin())


def _marked(rows: Rows, pickled: bool) -> Rows:
    """Returns the rows with their binary columns marked as pickled."""
    if not pickled or rows.pickled:
        return rows

    def marked(schema: pa.Schema) -> pa.Schema:
        return pa.schema(
            column.with_metadata({**(column.metadata or {}), PICKLED: b"1"})
            if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
            else column
            for column in schema
        )

    if rows.table is not None:
        table = replace(rows.table, data=rows.table.data.cast(marked(rows.schema)))
        return replace(Rows.of_table(table), origin=rows.origin, node=rows.node)
    return replace(rows, read=lambda: (batch.cast(marked(batch.schema)) for batch in rows.read()))


def _is_index(key: Any) -> bool:
    return isinstance(key, int | np.integer)
