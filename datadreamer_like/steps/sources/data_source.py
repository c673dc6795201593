"""Sources for data of the script: in memory, from a generator function, or in a dataset folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset, MissingFile, did_you_mean
from datadreamer_like.graph.fingerprint import ByContent, fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import iterable_schema
from datadreamer_like.graph.results import Kept
from datadreamer_like.graph.rows import Rows, Table
from datadreamer_like.graph.threads import interrupt_check
from datadreamer_like.storage.schemas import with_schema
from datadreamer_like.storage.tables import with_saved_keys
from datadreamer_like.storage.values import BAD_COLUMN_NAME, is_column_name

from ..base.columns import in_columns
from ..base.lazy_rows import LazyRowBatches
from ..base.options import NodeOptions, takes_node_options
from ..base.shapes import is_hf
from ..base.step import Step
from .opened_files import watched_files

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Row = dict[str, Any]
    Data: TypeAlias = dict[str, Any] | list[Row] | Callable[[], Iterator[Row]] | Dataset | IterableDataset


class Source(Step):
    """Base of steps that load rows. The columns of the rows are the outputs."""

    def setup(self) -> None:
        """Registers a placeholder: the columns are known when rows are read."""
        self.register_output("*", help="The columns of the rows.")

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the values that determine the rows, by name; a subclass writes this."""
        raise NotImplementedError(f"{type(self).__name__} has no fingerprint_values().")

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of the class and of the values that determine the rows."""
        values = self.fingerprint_values()
        return class_part(type(self)) | {
            what: fingerprint(value, f'"{self.name}": {what}') for what, value in values.items()
        }

    def planned_rows(self) -> Rows | None:
        """Returns the rows, read but not saved."""
        return self.run_rows()[0]

    def found_columns(self, names: Iterable[str]) -> list[str]:
        """Sets the rows' columns as the step's outputs, and returns their names."""
        self._output_specs = dict.fromkeys(map(str, names), next(iter(self._output_specs.values())))
        return list(self._output_specs)

    def write_rows(self, rows: Rows, draft: Path) -> Kept:
        """Saves the rows, and rejects a source without any."""
        kept = super().write_rows(rows, draft)
        if not kept.manifest.rows:
            raise EmptyDataset(f'"{self.name}" has no rows: {self.describe_empty()} Give at least one.')
        return kept

    def describe_empty(self) -> str:
        """Returns what is empty, for the error of a source without rows."""
        return "its data is empty."


class DataSource(Source):
    """Rows given by the script.

    A generator function and an `IterableDataset` are read lazily, again in each pass, and nothing is saved; other data
    are saved. The files that a function opens up to its first row are part of the fingerprint, so that what is made of
    the rows is made again when they change.

    Args:
        data: Columns by name, a list of rows (dictionaries; missing columns are None), a function that yields such
            rows, a `datasets.Dataset` or an `IterableDataset`.
        total_num_rows: The number of rows of a function or an iterable, if known.
        auto_progress: Accepted for DataDreamer scripts; rows are always counted as progress.
        save: Read a function or an iterable once, and save its rows.
        save_writer_batch_size: Accepted for DataDreamer scripts.
        **options: See `Step`.

    Raises:
        ArgumentTypeError: The data has another type.
        DataError: Columns have different lengths, or a row is not a dictionary.
        EmptyDataset: There are no rows.

    Example:
        >>> from datadreamer_like import DataDreamer
        >>> with DataDreamer(":memory:"):
        ...     DataSource("Pets", data={"pet": ["cat", "dog"]}).output["pet"][1]
        'dog'
    """

    @takes_node_options
    def __init__(
        self,
        name: str,
        data: Data,
        total_num_rows: int | None = None,
        auto_progress: bool = True,
        *,
        save: bool = False,
        save_writer_batch_size: int | None = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        self.data: Any = data
        self.total_num_rows = total_num_rows
        self.saves_rows = save
        _check(name, data)
        super().__init__(name, **options)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        return {"data": {"text": ["one", "two"]}}

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the data, the order of the columns of a dictionary, and the files that a function reads at first."""
        if isinstance(self.data, Mapping):
            return {"data": self.data, "order of columns": list(self.data)}
        if callable(self.data):
            _, files = self._first_row
            return {"data": self.data} | ({"content of the files it reads": files} if files else {})
        # An iterable's source and its transformations.
        return {"data": self.data._ex_iterable if is_hf(self.data, "IterableDataset") else self.data}

    def run(self) -> Any:
        """Loads the rows."""
        data = self.data
        if isinstance(data, Mapping):
            self.found_columns(data)
            return {name: list(column) for name, column in data.items()}
        if isinstance(data, list | tuple):
            names = self.found_columns(dict.fromkeys(name for row in data for name in row))
            return {name: [row.get(name) for row in data] for name in names}
        if is_hf(data, "Dataset"):
            self.found_columns(data.column_names)
            return Rows.of_dataset(data)
        read = data if callable(data) else lambda: iter(data)
        # The first row gives the columns, so it is generated now, and again in each pass.
        first = self._first_row[0] if callable(data) else next(iter(data), None)
        if first is None:
            raise EmptyDataset(f'"{self.name}" has no rows: the function yields none. Yield at least one.')
        _check(self.name, [first])
        names = self.found_columns(first)
        like = iterable_schema(data, names) if is_hf(data, "IterableDataset") else None
        total, save = self.total_num_rows, self.saves_rows
        return LazyRowBatches(lambda: in_columns(self._checked(read(), names), names), total, save=save, like=like)

    @cached_property
    def _first_row(self) -> tuple[Any, list[ByContent]]:
        with watched_files() as files:
            first = next(iter(self.data()), None)
        return first, list(map(ByContent, files))

    def _checked(self, rows: Iterable[Any], names: list[str]) -> Iterator[Row]:
        check = interrupt_check()
        for index, row in enumerate(rows):
            check()
            _check_row(self.name, index, row)
            for name in row:
                if name not in names:
                    raise DataError(
                        f'"{self.name}": row {index} has the column "{name}"; the first row has only: '
                        f"{', '.join(names)}.{did_you_mean(name, names)} Yield rows of the same columns."
                    )
            yield row


class HFDatasetDataSource(Source):
    """Rows of a dataset folder written by `Dataset.save_to_disk`; for the options see `Step`.

    Raises:
        MissingFile: There is no dataset in the folder, or there are several splits.
        EmptyDataset: There are no rows.
    """

    @takes_node_options
    def __init__(self, name: str, dataset_path: str | os.PathLike[str], **options: Unpack[NodeOptions]) -> None:
        if not isinstance(dataset_path, str | os.PathLike):
            raise ArgumentTypeError(f'"{name}": dataset_path must be a folder. Pass rows or a dataset to DataSource.')
        self.source_path = os.path.expanduser(dataset_path)
        if not os.path.isdir(self.source_path):
            raise MissingFile(f'"{name}": {self.source_path} is not a folder. Give the folder that save_to_disk wrote.')
        if os.path.exists(os.path.join(self.source_path, "dataset_dict.json")):
            splits = sorted(entry.name for entry in os.scandir(self.source_path) if entry.is_dir())
            raise MissingFile(
                f'"{name}": {self.source_path} holds several splits ({", ".join(splits)}). Give one of their folders: '
                f"{os.path.join(self.source_path, splits[0] if splits else 'train')}."
            )
        super().__init__(name, **options)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        from datasets import Dataset

        Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(folder / "saved")
        return {"dataset_path": folder / "saved"}

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the folder's content."""
        return {"content of the dataset": ByContent(self.source_path)}

    def run(self) -> Rows:
        """Opens the folder."""
        from datasets import load_from_disk

        try:
            dataset = load_from_disk(self.source_path)
        except Exception as error:
            raise MissingFile(
                f'"{self.name}": {self.source_path} cannot be read as a dataset ({error}). Give the folder that '
                "Dataset.save_to_disk wrote."
            ) from error
        self.found_columns(dataset.column_names)
        table = Rows.of_dataset(dataset).table
        assert table is not None
        data = with_schema(table.data, with_saved_keys(table.data.schema, Path(self.source_path)))
        return Rows.of_table(Table(data, table.indices))


def _check(name: str, data: Any) -> None:
    if is_hf(data, "DatasetDict"):
        raise ArgumentTypeError(
            f'"{name}": data is a DatasetDict with the splits {", ".join(data)}. Give one of them, or make a '
            "source for each."
        )
    if isinstance(data, Mapping):
        _check_names(name, data)
        for key, column in data.items():
            if not _is_column(column):
                raise ArgumentTypeError(
                    f'"{name}": column "{key}" is {type(column).__name__}; expected a list of its values.'
                )
        lengths = {key: len(column) for key, column in data.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f'"{name}": the columns have different lengths: {lengths}. Make them equally long.')
        empty = not any(lengths.values())
    elif isinstance(data, list | tuple):
        for index, row in enumerate(data):
            _check_row(name, index, row)
        empty = not data
        if data and not any(data):
            raise DataError(f'"{name}": the rows have no columns. Give dictionaries of column names and values.')
    elif callable(data) or is_hf(data, "Dataset") or is_hf(data, "IterableDataset"):
        empty = is_hf(data, "Dataset") and not len(data)
    else:
        raise ArgumentTypeError(
            f'"{name}": data is {type(data).__name__}; expected a dictionary of columns, a list of rows, a '
            "function that yields rows, a Dataset or an IterableDataset. Of a DataFrame, pass dict(frame.items())."
        )
    if empty:
        raise EmptyDataset(f'"{name}" has no rows: its data is empty. Give at least one.')


def _is_column(value: Any) -> bool:
    """Whether a value has an order and one value a row: a set has no order, and a table's length is not of its list."""
    if isinstance(value, str | bytes | bytearray | Set | Mapping) or hasattr(value, "columns"):
        return False
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def _check_row(name: str, index: int, row: Any) -> None:
    if not isinstance(row, Mapping):
        raise DataError(
            f'"{name}": row {index} is {type(row).__name__}; expected a dictionary of column names and values.'
        )
    _check_names(name, row)


def _check_names(name: str, columns: Mapping[Any, Any]) -> None:
    for column in columns:
        if not isinstance(column, str):
            raise DataError(f'"{name}": the column name {column!r} is not a string. Use {str(column)!r}.')
        if not is_column_name(column):
            raise DataError(f'"{name}": {BAD_COLUMN_NAME.format(column)}')
