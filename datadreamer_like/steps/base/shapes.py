"""What a value that `run` returns or yields means: rows, columns by output, or neither. The forms are DataDreamer's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, TypeAlias

from datadreamer_like.errors import StepOutputError, StepOutputTypeError, with_article
from datadreamer_like.graph.output import OutputDatasetColumnMixin, OutputDatasetMixin, OutputIterableDatasetColumn
from datadreamer_like.graph.rows import Batch
from datadreamer_like.storage.values import frame_columns

Shaped: TypeAlias = dict[str, list[Any]] | Iterable[Any]
"""Columns by output, or an iterable of rows."""


def is_hf(value: Any, name: str) -> bool:
    """Returns whether a value is an instance of a class of `datasets`, without importing it."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "datasets" for base in type(value).__mro__
    )


def is_table(value: Any) -> bool:
    """Whether a value is a dataset whose columns have names; an output column counts as values."""
    if isinstance(value, OutputDatasetMixin):
        return not isinstance(value, OutputDatasetColumnMixin)
    return is_hf(value, "Dataset") or is_hf(value, "IterableDataset")


def is_column(value: Any) -> bool:
    """Whether a value holds many values: an iterable other than a text, bytes, a dictionary or a dataset."""
    return (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes | bytearray | Mapping | type)
        and not is_table(value)
    )


def is_lazy_column(value: Any) -> bool:
    """Whether a value gives a column's values anew in each pass."""
    return isinstance(value, OutputIterableDatasetColumn) or (callable(value) and not is_column(value))


class Shapes:
    """Reads values for some `outputs`, in order; `what` names the step in messages."""

    def __init__(self, outputs: Sequence[str], what: str) -> None:
        self.outputs = list(outputs)
        self.what = what
        self.one = len(self.outputs) == 1

    def of_value(self, value: Any) -> Shaped:
        """Returns what `run` returned without a wrapper as columns or rows."""
        if value is None:
            return ()
        columns = frame_columns(value)
        if columns is not None:
            is_one = self.one and len(columns) == 1  # a single column may have any name
            return self.of_mapping(dict(zip(self.outputs, columns.values(), strict=True)) if is_one else columns)
        if isinstance(value, Mapping):
            return self.of_mapping(value)
        if isinstance(value, OutputDatasetColumnMixin):
            return {self.outputs[0]: list(value)} if self.one else self.of_list(list(value))
        if isinstance(value, Iterator):
            return self._of_iterator(value)
        if isinstance(value, tuple):
            return self._of_tuple(value)
        if isinstance(value, list | range):
            return self.of_list(value)
        if callable(value):
            raise StepOutputTypeError(f"{self.what}: run() returned a function. Return LazyRows(function) instead.")
        if not self.one:
            raise self.wrong(type(value).__name__)
        return (value,)

    def of_mapping(self, value: Mapping[str, Any]) -> Shaped:
        """Returns a dictionary as columns; as one row if it holds single values."""
        if set(value) != set(self.outputs):
            raise self.wrong(f"the columns {', '.join(map(str, value))}")
        for name, column in value.items():
            if callable(column) and not is_column(column):
                raise StepOutputTypeError(f'{self.what}: column "{name}" is a function. Wrap the dictionary: LazyRows.')
        return self.together([value[name] for name in self.outputs])

    def of_list(self, values: Sequence[Any]) -> Shaped:
        """Returns a list as rows; as columns, or as one row, where its elements cannot be rows."""
        first = values[0] if values else ()
        if not values or isinstance(first, Mapping) and self.names_output(first):
            return values
        if self.one:
            return {self.outputs[0]: list(first)} if isinstance(first, OutputDatasetColumnMixin) else values
        if isinstance(first, list | tuple) and len(first) == len(self.outputs):
            return values
        if len(values) != len(self.outputs):
            found = f"{len(first)} values" if isinstance(first, list | tuple) else type(first).__name__
            raise self.wrong_row(found)
        return self.together(values)

    def together(self, values: Sequence[Any]) -> Shaped:
        """Returns a value per output as columns, or as one row; refuses a mixture."""
        columns = [is_column(value) for value in values]
        if not any(columns):
            return (dict(zip(self.outputs, values, strict=True)),)
        if not all(columns):
            single = self.outputs[columns.index(False)]
            raise self.wrong(f'columns and a single value, "{single}"')
        found = {name: list(column) for name, column in zip(self.outputs, values, strict=True)}
        lengths = {name: len(column) for name, column in found.items()}
        if len(set(lengths.values())) > 1:
            raise StepOutputTypeError(f"{self.what}: run() returned columns of different lengths: {lengths}.")
        return found

    def names_output(self, row: Mapping[str, Any]) -> bool:
        """Whether a dictionary is a row, not a value: it has the name of an output."""
        return any(name in row for name in self.outputs)

    def lazy_columns(self, value: Any) -> list[Any] | None:
        """Returns the columns, in the outputs' order, of a value with a generator function or lazy column among them.

        None where there is none among them, or the value holds no columns.
        """
        if isinstance(value, Mapping):
            if not any(map(is_lazy_column, value.values())):
                return None
            if set(value) != set(self.outputs):
                raise self.wrong(f"the columns {', '.join(map(str, value))}")
            columns = [value[name] for name in self.outputs]
        elif isinstance(value, list | tuple) and any(map(is_lazy_column, value)):
            columns = list(value)
            if len(columns) != len(self.outputs):
                raise self.wrong(f"{len(columns)} columns")
        else:
            return None
        for column in columns:
            if not is_lazy_column(column) and not is_column(column):
                raise self.wrong(f"{with_article(type(column))} among columns")
        return [list(column) if isinstance(column, Iterator) else column for column in columns]

    def wrong(self, found: str) -> StepOutputError:
        """Returns the error of a value that does not match the outputs."""
        return StepOutputError(f"{self.what}: run() returned {found}; expected {', '.join(self.outputs)}.")

    def wrong_row(self, found: str) -> StepOutputError:
        """Returns the error of a row that does not match the outputs."""
        names = ", ".join(self.outputs)
        expected = names if self.one or found.startswith("the columns") else f"{len(self.outputs)} ({names})"
        return StepOutputError(f"{self.what}: a row has {found}; expected {expected}.")

    def _of_iterator(self, values: Iterator[Any]) -> Shaped:
        for first in values:
            is_row = self.names_output(first) if isinstance(first, Mapping) else False
            if isinstance(first, list | tuple) and not self.one:
                is_row = len(first) == len(self.outputs)
            if is_row or (self.one and not isinstance(first, OutputDatasetColumnMixin)):
                return chain([first], values)
            return self.of_list([first, *values])
        return ()

    def _of_tuple(self, value: tuple[Any, ...]) -> Shaped:
        if not value or (isinstance(value[0], Mapping) and self.names_output(value[0])):
            return value
        if len(value) != len(self.outputs):
            raise self.wrong(f"a tuple of {len(value)} values")
        return self.together(value)


class RowReader:
    """Converts portions of rows to columns; a row is a dictionary, one value per output, or the value of one output.

    With one output a dictionary is a row if `dicts`, else a value. With `lazy`, rows after the first may lack outputs,
    which are None there.
    """

    def __init__(self, shapes: Shapes, dicts: bool = True, lazy: bool = False) -> None:
        self.shapes = shapes
        self.dicts = dicts or not shapes.one
        self.lazy = lazy
        self._wanted = set(shapes.outputs)
        self._started = False

    def columns(self, rows: Iterable[Any]) -> Batch:
        """Returns rows as columns."""
        listed, names = list(rows), self.shapes.outputs
        if not listed:
            return {}
        wanted = self._wanted
        if self.dicts and all(type(row) is dict and row.keys() == wanted for row in listed):  # the fast path
            self._started = True
            return {name: [row[name] for row in listed] for name in names}
        if self.shapes.one:
            return {names[0]: [self._value(row) for row in listed]}
        return dict(zip(names, map(list, zip(*map(self._values, listed), strict=True)), strict=True))

    def _value(self, row: Any) -> Any:
        """Returns the value of the one output."""
        if self.dicts and isinstance(row, Mapping):
            return self._of_dict(row)[0]
        self._started = True
        if isinstance(row, tuple) and len(row) == 1:
            return row[0]
        return list(row) if isinstance(row, Iterator | AbstractSet) else row

    def _values(self, row: Any) -> Sequence[Any]:
        """Returns the values of several outputs."""
        if isinstance(row, Mapping):
            return self._of_dict(row)
        self._started = True
        values = tuple(row) if isinstance(row, Iterator) else row
        if not isinstance(values, tuple | list) or len(values) != len(self.shapes.outputs):
            found = f"{len(values)} values" if isinstance(values, tuple | list) else type(values).__name__
            raise self.shapes.wrong_row(found)
        return values

    def _of_dict(self, row: Mapping[str, Any]) -> list[Any]:
        lacking = self.lazy and self._started and row.keys() < self._wanted
        if row.keys() != self._wanted and not lacking:
            raise self.shapes.wrong_row(f"the columns {', '.join(map(str, row))}")
        self._started = True
        return [row.get(name) for name in self.shapes.outputs]


class BatchReader:
    """Converts the batches that a step yields to columns."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._rows = RowReader(shapes)
        self._in_columns = False

    def columns(self, batch: Any) -> Batch:
        """Returns a batch as columns; an empty dictionary if it has no rows."""
        shapes = self.shapes
        if isinstance(batch, Mapping):
            found = shapes.of_mapping(batch)
        elif isinstance(batch, tuple):
            if len(batch) != len(shapes.outputs) or not all(map(is_column, batch)):
                raise shapes.wrong(f"a batch of {len(batch)} values")
            found = shapes.together(batch)
        elif isinstance(batch, list) and self._holds_columns(batch):
            self._in_columns = True
            found = shapes.together(batch)
        else:
            found = batch if isinstance(batch, list | Iterator) else shapes.of_value(batch)
        return found if isinstance(found, dict) else self._rows.columns(found)

    def _holds_columns(self, batch: list[Any]) -> bool:
        width = len(self.shapes.outputs)
        if len(batch) != width or not all(map(is_column, batch)):
            return False
        first = batch[0]
        return self._in_columns or not (isinstance(first, list | tuple) and len(first) == width)


def lazy_rows(columns: Sequence[Any], batched: bool) -> Callable[[], Iterator[tuple[Any, ...]]]:
    """Returns a function that yields rows of columns, some of them lazy, up to the shortest.

    With `batched`, each column gives batches of its values.
    """

    def read() -> Iterator[tuple[Any, ...]]:
        passes = [column() if callable(column) and not is_column(column) else column for column in columns]
        in_batches = [batched and not isinstance(one, OutputDatasetMixin) for one in passes]
        values = [chain.from_iterable(one) if split else one for one, split in zip(passes, in_batches, strict=True)]
        yield from zip(*values, strict=False)

    return read
