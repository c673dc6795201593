"""The datasets and columns of a step's output: thin views of `Rows`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datadreamer_like.errors import DefinitionError, NoSuchRow, UnknownColumn, did_you_mean
from datadreamer_like.storage.schemas import with_schema
from datadreamer_like.storage.tables import as_dataset
from datadreamer_like.storage.values import PICKLED, features_of, known_features, to_batch, to_columns, with_features

from .node import Node
from .origin import Origin
from .row_numbers import is_whole_number, row_numbers
from .rows import BATCH_SIZE as BATCH_SIZE
from .rows import Batch as Batch
from .rows import Rows, untyped

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetInfo, IterableDataset


class OutputDatasetMixin:
    """Base of datasets and columns; if `pickled`, values may be Python objects that are restored when they are read."""

    pickled: bool
    cut: int | None = None
    """In a preview of a step, the number of rows that are left of its input; None for all rows."""
    _step: Node
    _given: Any  # a datasets.Dataset, `Rows`, or a function that opens them

    @property
    def step(self) -> Node:
        """The step that made this dataset."""
        return self._step

    @cached_property
    def rows(self) -> Rows:
        """The rows as Arrow batches."""
        given = self._given() if callable(self._given) else self._given
        rows = given if isinstance(given, Rows) else Rows.of_dataset(given)
        return _marked(replace(rows, node=rows.node or self._step), self.pickled)

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
        cut = () if self.cut is None else (self.cut,)
        return type(self).__name__.replace("Iterable", ""), self._step, tuple(self.column_names), *cut

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all rows as columns of up to `batch_size` values."""
        return self.rows.batches(batch_size)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def head(self, n: int = 5, shuffle: bool = False, seed: int | None = None, buffer_size: int = 1000) -> pd.DataFrame:
        """Returns the first `n` rows as a pandas DataFrame; with `shuffle`, a sample of the first `buffer_size`."""
        import pandas as pd

        wanted = max(n, buffer_size) if shuffle else n
        rows: list[tuple[Any, ...]] = []
        for batch in self.batches(min(wanted, BATCH_SIZE) or 1):
            rows += zip(*batch.values(), strict=True)
            if len(rows) >= wanted:
                break
        if shuffle:
            rows = random.Random(seed).sample(rows[:buffer_size], min(n, buffer_size, len(rows)))
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
    """Base of columns; their elements are values. `whole` is the column's dataset; None for one made by hand."""

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

    `dataset` is a `datasets.Dataset`, `Rows` of a table, or a function that opens them on first use. Values may be
    `pickled` Python objects. `columns` and `num_rows` are given if they are known without opening the rows.
    """

    def __init__(
        self,
        step: Node,
        dataset: Dataset | Rows | Callable[[], Rows],
        pickled: bool = False,
        columns: list[str] | None = None,
        num_rows: int | None = None,
    ) -> None:
        self._check(step, dataset, "Dataset")
        self._step = step
        self.pickled = pickled
        self._given = dataset
        self._columns = columns
        self._num_rows = num_rows

    @cached_property
    def dataset(self) -> Dataset:
        """The rows as a `datasets.Dataset`."""
        if not callable(self._given) and not isinstance(self._given, Rows):
            return self._given
        table = self.rows.table
        assert table is not None
        return as_dataset(table.data, table.indices, self._step.fingerprint)

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
            column = OutputDatasetColumn(self._step, partial(self._only, key), self.pickled, [key], self.num_rows)
            column.whole, column.cut = self, self.cut
            return column
        found = self._taken(key)
        return {name: values[0] for name, values in found.items()} if is_whole_number(key) else found

    def _only(self, column: str) -> Rows:
        return self.rows.select_columns([column])

    def _taken(self, key: Any) -> Batch:
        table = self.rows.table
        assert table is not None
        size = len(table)
        if isinstance(key, slice):
            return to_columns(table.select(range(size)[key]).whole())
        positions = row_numbers([key] if is_whole_number(key) else key, f'An index of "{self._step.name}"')
        missing = positions[(positions < -size) | (positions >= size)]
        if len(missing):
            raise NoSuchRow(f'"{self._step.name}" has no row {missing[0]}; it has {size:,} rows.')
        chosen = positions % size if size else positions
        if len(chosen) == 1:  # a slice is faster
            return to_columns(table.select(range(chosen[0], chosen[0] + 1)).whole())
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
        return values[0] if is_whole_number(key) else values


class OutputIterableDataset(OutputDatasetMixin):
    """A dataset of lazy rows, generated again in each pass.

    `dataset` is a `datasets.IterableDataset` or `Rows`, and `total_num_rows` the number of its rows, if known; the
    other arguments are those of `OutputDataset`.
    """

    def __init__(
        self, step: Node, dataset: IterableDataset | Rows, pickled: bool = False, total_num_rows: int | None = None
    ) -> None:
        self._check(step, dataset, "IterableDataset")
        self._step = step
        self._iterable = None if isinstance(dataset, Rows) else dataset
        rows = dataset if isinstance(dataset, Rows) else rows_of_iterable(dataset)
        self._check(step, rows, "IterableDataset")  # its columns may only now be known
        self._given = rows if total_num_rows is None else replace(rows, num_rows=max(0, total_num_rows))
        self.pickled = pickled or rows.pickled

    def __iter__(self) -> Iterator[Any]:
        return self._noted(super().__iter__())

    def _noted(self, values: Iterator[Any]) -> Iterator[Any]:
        """Yields values, and reports to the step which share of them was read."""
        total = self.num_rows
        for count, value in enumerate(values, start=1):
            if total:
                self._step.note_read(count / total)
            yield value
        self._step.note_read(1.0)

    @property
    def total_num_rows(self) -> int | None:
        """Number of rows; None if it is unknown before they are read."""
        return self.num_rows

    @cached_property
    def dataset(self) -> IterableDataset:
        """The rows as a `datasets.IterableDataset`."""
        from datasets import DatasetInfo, IterableDataset
        from datasets.iterable_dataset import ExamplesIterable

        if self._iterable is not None:
            return self._iterable
        # IterableDataset.from_generator would hash all that the step refers to.
        examples = ExamplesIterable(lambda: enumerate(OutputDatasetMixin.__iter__(self)), {})
        return IterableDataset(examples, DatasetInfo(features=known_features(self.rows.schema)))

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            raise TypeError(
                f'The rows of "{self._step.name}" are generated lazily, so they have no positions. '
                "Save them first: step.save().output[i]."
            )
        self._check_column(key)
        column = OutputIterableDatasetColumn(self._step, self.rows.select_columns([key]), self.pickled)
        column.whole, column.cut = self, self.cut
        return column


class OutputIterableDatasetColumn(OutputDatasetColumnMixin, OutputIterableDataset):
    """One column of a dataset of lazy rows; its elements are values."""

    def __iter__(self) -> Iterator[Any]:
        return self._noted(self.values())


Column = OutputDatasetColumn | OutputIterableDatasetColumn


def rows_of_iterable(dataset: IterableDataset) -> Rows:
    """Returns the rows of a `datasets.IterableDataset`, with its class names and images."""
    names = dataset.column_names or list(next(iter(dataset), {}))
    schema = iterable_schema(dataset, names)

    def read() -> Iterator[pa.RecordBatch]:
        rows = iter(dataset)
        while portion := list(islice(rows, BATCH_SIZE)):
            yield to_batch({name: [row.get(name) for row in portion] for name in names}, like=schema)

    return Rows(schema, None, read, Origin())


def iterable_schema(dataset: IterableDataset, names: list[str]) -> pa.Schema:
    """Returns the schema of a `datasets.IterableDataset`; the types of columns are unknown where it has no features."""
    features = dataset.features
    if features is None or set(features) != set(names):
        return untyped(names)
    return with_features(pa.schema([features.arrow_schema.field(name) for name in names]), features)


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
        table = replace(rows.table, data=with_schema(rows.table.data, marked(rows.schema)))
        return replace(Rows.of_table(table), origin=rows.origin, node=rows.node)
    return replace(rows, read=lambda: (with_schema(batch, marked(batch.schema)) for batch in rows.read()))
