"""Columns of batches: reading a step's inputs together, in one pass over each dataset, and checking `process`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from datadreamer_like.errors import DataError, DefinitionError, StepOutputError
from datadreamer_like.graph.output import Column, OutputDatasetMixin
from datadreamer_like.graph.rows import BATCH_SIZE, Batch, Rows

from ..operations.transforms import join_columns

T = TypeVar("T")


def columns_together(columns: Mapping[str, Column], what: str) -> Iterator[Batch]:
    """Yields batches of several columns as Python values; columns of one dataset are read in one pass."""
    sizes = {name: column.num_rows for name, column in columns.items()}
    if len({size for size in sizes.values() if size is not None}) > 1:
        raise DefinitionError(f"{what}: the inputs have different numbers of rows: {sizes}. Give columns of one step.")

    different = DefinitionError(
        f"{what}: the inputs {', '.join(columns)} have different numbers of rows. Give columns of one step."
    )
    parts: list[Rows] = []
    joined_names: dict[str, str] = {}
    for index, dataset in enumerate(dict.fromkeys(map(whole, columns.values()))):
        own = {name: column.column_names[0] for name, column in columns.items() if whole(column) is dataset}
        # Datasets may have columns of the same name.
        renamed = {column: f"{index} {column}" for column in own.values()}
        joined_names |= {name: renamed[column] for name, column in own.items()}
        parts.append(replace(dataset.rows.select_columns(list(renamed)).renamed(renamed), table=None))
    joined = parts[0] if len(parts) == 1 else join_columns(parts, lambda node, count: different)
    for batch in joined.batches():
        yield {name: batch[joined_names[name]] for name in columns}


def whole(column: Column) -> OutputDatasetMixin:
    """Returns the dataset that a column is from; a column made by hand is its own."""
    return column if column.whole is None else column.whole


def check_texts(values: Iterable[Any], column: str, what: str, start: int | None = None) -> None:
    """Raises `DataError` at the first value that is neither a text nor None; `start` is the row of the first value."""
    for place, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            row = "" if start is None else f" in row {start + place}"
            raise DataError(
                f'{what}: column "{column}" has {value!r:.100}{row}, which is not a text. Convert it first: '
                "step.map(...)."
            )


def inputs_schema(columns: Mapping[str, Column]) -> pa.Schema:
    """Returns the schema of columns, by their names in the step."""
    return pa.schema([column.rows.schema.field(0).with_name(name) for name, column in columns.items()])


def num_rows_of(columns: Mapping[str, Column]) -> int | None:
    """Returns the number of rows of columns that are read together; None where it is unknown."""
    return next((column.num_rows for column in columns.values() if column.num_rows is not None), None)


def batched(values: Iterable[T], size: int = BATCH_SIZE) -> Iterator[list[T]]:
    """Yields lists of at most `size` values."""
    rest = iter(values)
    while portion := list(islice(rest, size)):
        yield portion


def in_columns(rows: Iterable[Mapping[str, Any]], names: list[str]) -> Iterator[Batch]:
    """Yields batches of rows as columns; missing values are None."""
    for portion in batched(rows):
        yield {name: [row.get(name) for row in portion] for name in names}


def one_per_row(values: Iterable[Any], batch: Batch, what: str) -> list[Any]:
    """Returns the values that a method, called `what` in messages, made for the rows of a batch.

    Raises:
        StepOutputError: They are more or fewer than the rows.
    """
    made = list(values)
    for column in batch.values():
        if len(made) != len(column):
            raise StepOutputError(
                f"{what} returned {len(made)} values for the {len(column)} rows of its batch. It must return one per "
                "row; None for a row without one."
            )
    return made


def processed(
    process: Callable[[Batch], Any], what: str, outputs: list[str], batches: Iterator[tuple[int, Batch]]
) -> Iterator[Mapping[str, Any]]:
    """Yields the checked results of a step's `process` on batches, each given with the position of its first row."""
    for start, batch in batches:
        size = len(next(iter(batch.values())))
        made = process(batch)
        rows = f"rows {start} to {start + size - 1}"
        if not isinstance(made, Mapping) or set(made) != set(outputs):
            other = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
            raise StepOutputError(
                f"{what}: process() returned {other} for {rows}; expected the columns {', '.join(outputs)}."
            )
        columns: dict[str, Any] = {}
        for name, values in made.items():
            if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
                raise StepOutputError(
                    f'{what}: process() returned {type(values).__name__} as the column "{name}" for {rows}; expected '
                    "a list, a tuple or an array."
                )
            columns[name] = values if hasattr(values, "__len__") else list(values)
            if (found := len(columns[name])) != size:
                raise StepOutputError(
                    f'{what}: process() returned {found} values of "{name}" for the {size} rows of its batch '
                    f"({rows}). It must return one per row; write run() to change the number of rows."
                )
        yield columns


def placed_parts(batches: Iterator[Batch], most: int | None) -> Iterator[tuple[int, Batch]]:
    """Yields batches of at most `most` rows, each with the position of its first row."""
    position = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        for start in range(0, size, most or max(1, size)):
            part = batch if most is None else {name: values[start : start + most] for name, values in batch.items()}
            yield position + start, part
        position += size
