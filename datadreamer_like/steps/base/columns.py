"""Reading a step's input columns together, in one pass over each dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.output import Column, OutputDatasetMixin
from datadreamer_like.graph.rows import Batch, Rows

from ..operations.transforms import join_columns


def rows_together(columns: Mapping[str, Column], what: str) -> Rows:
    """Joins several columns row by row, by their names in the rows; columns of one dataset are read in one pass.

    Raises:
        DefinitionError: The columns have different numbers of rows.
    """
    sizes = {name: column.num_rows for name, column in columns.items()}
    if len({size for size in sizes.values() if size is not None}) > 1:
        raise DefinitionError(f"{what}: the inputs have different numbers of rows: {sizes}. Give columns of one step.")
    shared: dict[int, tuple[OutputDatasetMixin, dict[str, str]]] = {}
    for name, column in columns.items():
        whole = _whole(column)
        shared.setdefault(id(whole), (whole, {}))[1][name] = column.column_names[0]
    parts = [_named(whole.rows, taken) for whole, taken in shared.values()]
    if len(parts) == 1:
        return parts[0]

    def differ(index: int, count: int) -> None:
        raise DefinitionError(
            f"{what}: the inputs {', '.join(columns)} have different numbers of rows. Give columns of one step."
        )

    return join_columns(parts, differ)


def _named(rows: Rows, names: Mapping[str, str]) -> Rows:
    """Returns columns under new names; a column may appear under several names."""
    chosen = rows.select_columns(list(dict.fromkeys(names.values())))

    def renamed(schema: pa.Schema) -> pa.Schema:
        return pa.schema([schema.field(column).with_name(name) for name, column in names.items()])

    def read() -> Iterator[pa.RecordBatch]:
        for batch in chosen.read():
            yield pa.RecordBatch.from_arrays(list(map(batch.column, names.values())), schema=renamed(batch.schema))

    return Rows(renamed(chosen.schema), rows.num_rows, read, node=rows.node)


def columns_together(columns: Mapping[str, Column], what: str) -> Iterator[Batch]:
    """Yields batches of several columns as Python values; see `rows_together`."""
    order = list(columns)
    for batch in rows_together(columns, what).batches():
        yield {name: batch[name] for name in order}


def whole_rows(column: Column) -> Iterator[Batch]:
    """Yields batches of all columns of a column's dataset."""
    return _whole(column).batches()


def columns_of(column: Column) -> list[str]:
    """Returns the names of all columns of a column's dataset."""
    return _whole(column).column_names


def whole_schema(column: Column) -> pa.Schema:
    """Returns the schema of a column's dataset."""
    return _whole(column).rows.schema


def inputs_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Returns the schema of columns, by their names in the step."""
    return pa.schema([column.rows.schema.field(0).with_name(name) for name, column in columns.items()])


def num_rows_of(columns: Mapping[str, Column]) -> int | None:
    """Returns the number of rows of columns that are read together; None where it is unknown."""
    return next((column.num_rows for column in columns.values() if column.num_rows is not None), None)


def _whole(column: Column) -> OutputDatasetMixin:
    return column if column.whole is None else column.whole
