"""Datasets that steps yield, and their columns: on disk and read as needed, or made anew at each pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from datadreamer_like.errors import UnknownColumn, did_you_mean
from datadreamer_like.storage.tables import table_batches

from .pickles import is_pickled, unpickle

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, DatasetInfo, IterableDataset

    from .node import Node

Batch = dict[str, list[Any]]

BATCH_SIZE = 1000


@dataclass(frozen=True)
class RowSource:
    """Rows that are made when they are asked for, each pass anew.

    Attributes:
        columns: Names of the columns, in order.
        batches: Starts a pass and yields batches: columns as lists of equal length.
        num_rows: How many rows a pass gives, where that is known.
        pickled: Whether values are Python objects that must be pickled to be stored.
        sample: One row, where one was made already to learn its columns.
    """

    columns: list[str]
    batches: Callable[[], Iterator[Batch]]
    num_rows: int | None = None
    pickled: bool = False
    sample: Batch | None = None


def unpickled(batch: Batch) -> Batch:
    """Restores pickled values."""
    return {
        name: [unpickle(value) for value in values] if any(map(is_pickled, values)) else values
        for name, values in batch.items()
    }


class OutputDatasetMixin:
    """What datasets and columns of both kinds have in common."""

    _step: Node
    _pickled: bool

    @property
    def step(self) -> Node:
        """The step that made this dataset."""
        return self._step

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        raise NotImplementedError

    @property
    def num_rows(self) -> int | None:
        """Number of rows; None if that is not known before they are made."""
        raise NotImplementedError

    @property
    def num_columns(self) -> int:
        """Number of columns."""
        return len(self.column_names)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content, by what made it."""
        return self._step.fingerprint

    def __fingerprint__(self) -> tuple[Any, ...]:
        return type(self).__name__.replace("Iterable", ""), self._step, tuple(self.column_names)

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all rows as columns of up to `batch_size` values."""
        raise NotImplementedError

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields all rows as dictionaries."""
        for batch in self.batches():
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))

    def head(self, n: int = 5, shuffle: bool = False, seed: int | None = None, buffer_size: int = 1000) -> pd.DataFrame:
        """Returns some rows as a pandas frame.

        Args:
            n: How many.
            shuffle: Take them at random from the first `buffer_size` rows instead of the first ones.
            seed: Seed for that.
            buffer_size: How many rows to draw from.
        """
        import pandas as pd

        if shuffle:
            pool = list(islice(self.rows(), buffer_size))
            rows = random.Random(seed).sample(pool, min(n, len(pool)))
        else:
            rows = list(islice(self.rows(), n))
        return pd.DataFrame(rows, columns=self.column_names)

    @property
    def pickled(self) -> bool:
        """Whether values may be pickled Python objects, restored when read."""
        return self._pickled

    def _check_column(self, name: str) -> None:
        if name not in self.column_names:
            raise UnknownColumn(
                f'"{self._step.name}" has no column "{name}"; it offers: {", ".join(self.column_names)}.'
                + did_you_mean(name, self.column_names)
            )

    def _unpickled(self, batch: Batch) -> Batch:
        if not self._pickled:
            return batch
        return unpickled(batch)


class OutputDatasetColumnMixin(OutputDatasetMixin):
    """What columns of both kinds have in common: their elements are values."""

    def values(self) -> Iterator[Any]:
        """Yields all values."""
        name = self.column_names[0]
        for batch in self.batches():
            yield from batch[name]

    def __iter__(self) -> Iterator[Any]:
        return self.values()


class OutputDataset(OutputDatasetMixin):
    """A dataset on disk, memory-mapped.

    Args:
        step: The step that it belongs to.
        dataset: The rows, or a function that opens them when they are first needed.
        pickled: Whether values may be pickled Python objects, to be restored when read.
    """

    def __init__(
        self,
        step: Node,
        dataset: Dataset | Callable[[], Dataset],
        pickled: bool = False,
        *,
        columns: list[str] | None = None,
        num_rows: int | None = None,
    ) -> None:
        self._step = step
        self._pickled = pickled
        self._dataset = dataset
        self._columns = columns
        self._rows = num_rows

    @property
    def dataset(self) -> Dataset:
        """The rows as a `datasets.Dataset`."""
        if callable(self._dataset):
            self._dataset = self._dataset()
        return self._dataset

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns) if self._columns is not None else list(self.dataset.column_names)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._rows if self._rows is not None else len(self.dataset)

    @property
    def info(self) -> DatasetInfo:
        """The `datasets.DatasetInfo`."""
        return self.dataset.info

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[Any]:
        return self.rows()

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            self._check_column(key)
            return OutputDatasetColumn(
                self._step,
                partial(self._only, key),
                self._pickled,
                columns=[key],
                num_rows=self._rows,
            )
        found = self.dataset[key]
        if not self._pickled:
            return found
        if isinstance(key, int):
            return {name: unpickle(value) for name, value in found.items()}
        return self._unpickled(found)

    def _only(self, column: str) -> Dataset:
        return self.dataset.select_columns([column])

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all rows as columns of up to `batch_size` values."""
        if not self.column_names:
            return
        for table in table_batches(self.dataset, batch_size):
            yield self._unpickled(_python_values(table, self.dataset))

    def save_to_disk(self, path: str, num_proc: int | None = None, num_shards: int | None = None) -> None:
        """Saves a copy that `datasets.load_from_disk` opens."""
        self.dataset.save_to_disk(path, num_proc=num_proc, num_shards=num_shards)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.column_names}, num_rows={self.num_rows}, step={self._step.name!r})"


class OutputDatasetColumn(OutputDatasetColumnMixin, OutputDataset):
    """One column of a dataset on disk; its elements are values instead of rows."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        found = self.dataset[key][self.column_names[0]]
        if not self._pickled:
            return found
        return unpickle(found) if isinstance(key, int) else [unpickle(value) for value in found]


class OutputIterableDataset(OutputDatasetMixin):
    """A dataset whose rows are made when they are asked for.

    Args:
        step: The step that it belongs to.
        dataset: The rows.
        pickled: Whether values may be pickled Python objects, to be restored when read.
        total_num_rows: How many rows there are, where that is known.
    """

    def __init__(
        self,
        step: Node,
        dataset: IterableDataset | RowSource,
        pickled: bool = False,
        total_num_rows: int | None = None,
    ) -> None:
        self._step = step
        self._pickled = pickled
        if isinstance(dataset, RowSource):
            self._pickled = pickled or dataset.pickled
            self._source = dataset
            self._iterable: IterableDataset | None = None
        else:
            self._source = _source_of(dataset, total_num_rows)
            self._iterable = dataset
        self._rows = total_num_rows if total_num_rows is not None else self._source.num_rows

    @property
    def source(self) -> RowSource:
        """How the rows are made."""
        return self._source

    @property
    def dataset(self) -> IterableDataset:
        """The rows as a `datasets.IterableDataset`."""
        if self._iterable is None:
            from datasets import IterableDataset

            self._iterable = IterableDataset.from_generator(self.rows)
        return self._iterable

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._source.columns)

    @property
    def num_rows(self) -> int | None:
        """Number of rows; None if that is not known before they are made."""
        return self._rows

    @property
    def info(self) -> DatasetInfo:
        """The `datasets.DatasetInfo`."""
        return self.dataset.info

    def __iter__(self) -> Iterator[Any]:
        return self.rows()

    @overload
    def __getitem__(self, key: str) -> OutputIterableDatasetColumn: ...
    @overload
    def __getitem__(self, key: Any) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            raise TypeError(
                f'The rows of "{self._step.name}" are made when they are asked for, so they have no positions. '
                "Save them first: step.save().output[i]."
            )
        self._check_column(key)

        def batches() -> Iterator[Batch]:
            for batch in self._source.batches():
                yield {key: batch[key]}

        source = RowSource([key], batches, self._rows, self._source.pickled)
        return OutputIterableDatasetColumn(self._step, source, self._pickled, self._rows)

    def batches(self, batch_size: int = BATCH_SIZE) -> Iterator[Batch]:
        """Yields all rows as columns of up to `batch_size` values, in the portions in which they are made."""
        for batch in self._source.batches():
            size = len(next(iter(batch.values()), ()))
            if size <= batch_size:
                yield self._unpickled(batch)
                continue
            for start in range(0, size, batch_size):
                part = {name: values[start : start + batch_size] for name, values in batch.items()}
                yield self._unpickled(part)

    def __repr__(self) -> str:
        rows = "?" if self._rows is None else self._rows
        return f"{type(self).__name__}({self.column_names}, num_rows={rows}, step={self._step.name!r})"


class OutputIterableDatasetColumn(OutputDatasetColumnMixin, OutputIterableDataset):
    """One column of a dataset whose rows are made when they are asked for; its elements are values."""


Column = OutputDatasetColumn | OutputIterableDatasetColumn


def _python_values(table: Any, dataset: Dataset) -> Batch:
    batch = {name: table.column(name).to_pylist() for name in table.column_names}
    for name, feature in dataset.features.items():
        # Images, audio and the like are stored encoded and read as objects.
        if hasattr(feature, "decode_example") and name in batch:
            batch[name] = [None if value is None else feature.decode_example(value) for value in batch[name]]
    return batch


def _source_of(dataset: IterableDataset, num_rows: int | None) -> RowSource:
    columns = dataset.column_names
    if columns is None:
        columns = list(next(iter(dataset), {}))

    def batches() -> Iterator[Batch]:
        rows = iter(dataset)
        while portion := list(islice(rows, BATCH_SIZE)):
            yield {name: [row.get(name) for row in portion] for name in columns}

    return RowSource(list(columns), batches, num_rows)
