"""Conversion of the return values of `run` to `Rows`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DefinitionError, StepOutputError, did_you_mean
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.origin import INPUT, Every, Origin, Piece, Several, Stated
from datadreamer_like.graph.output import OutputDatasetMixin, rows_of_iterable
from datadreamer_like.graph.rows import BATCH_SIZE, Batch, Rows, rebatched
from datadreamer_like.storage.schemas import widened
from datadreamer_like.storage.values import given_batch, to_batch

from ..operations.transforms import StatedBatches, join_columns
from .lazy_rows import From, LazyRowBatches, LazyRows, RowsFrom, Traced, Values

# Slow rows are passed on this often, so that progress is visible and saved; fast ones in full batches.
_FLUSH_SECONDS = 0.5


@dataclass(frozen=True)
class Expected:
    """The outputs that a step's rows must match, in order; `what` names the step in messages.

    `inputs` are the nodes of its inputs by name, `like` is a schema of columns whose types are known (see `LazyRows`).
    """

    outputs: list[str]
    what: str
    inputs: Mapping[str, Node]
    like: pa.Schema | None = None

    def stated(self, sources: Iterable[From], num_rows: int | None) -> Stated:
        """Returns the origin of rows, by node and role; each source must be an input, a column or a node."""
        stated: dict[tuple[Node, str], Piece | None] = {}
        for given in sources:
            source = self.inputs.get(given.source) if isinstance(given.source, str) else given.source
            node = source.step if isinstance(source, OutputDatasetMixin) else source
            if not isinstance(node, Node):
                raise DefinitionError(
                    f"{self.what}: From({given.source!r}) is not a column, a step or one of its inputs "
                    f"({', '.join(self.inputs) or 'none'}).{did_you_mean(str(given.source), self.inputs)}"
                )
            if num_rows is not None and not isinstance(given.rows, Every | None) and len(given.rows) != num_rows:
                raise StepOutputError(
                    f"{self.what}: From({given.source!r}) states the origin of {len(given.rows):,} rows; there are "
                    f"{num_rows:,}. Give one entry per row, None for a row without one."
                )
            stated[node, given.role] = _piece(given.rows)
        return stated

    def wrong(self, found: Iterable[Any]) -> StepOutputError:
        """Returns the error of rows with other columns."""
        return StepOutputError(
            f"{self.what}: run() returned the columns {', '.join(map(str, found))}; expected {', '.join(self.outputs)}."
        )


def _piece(rows: RowsFrom | None) -> Piece | None:
    if rows is None or isinstance(rows, range | Every):
        return rows
    if isinstance(rows, np.ndarray):
        return rows.astype(np.int64)
    if any(isinstance(row, Sequence | np.ndarray) for row in rows):
        return Several.of(rows)  # type: ignore[arg-type]
    return np.array([-1 if row is None else row for row in rows], dtype=np.int64)


def normalized(value: Any, expected: Expected) -> tuple[Rows, bool]:
    """Converts a return value of `run` to rows that match the outputs, and returns whether they stay lazy."""
    if isinstance(value, Traced):
        rows, lazy = normalized(value.value, expected)
        links = [
            replace(link, role=role)
            for (node, role), piece in expected.stated(value.sources, rows.num_rows).items()
            for link in (Origin.same(node) if piece is None else Origin.at(node, piece)).links or ()
        ]
        return replace(rows, origin=Origin(tuple(links))), lazy
    if isinstance(value, LazyRows | LazyRowBatches):
        return _of_lazy(value, replace(expected, like=value.like))
    if isinstance(value, Rows) or _is_dataset(value):
        rows = _rows_of(value)
        return _fitted(rows, expected), rows.table is None
    if is_hf(value, "IterableDataset"):
        raise StepOutputError(f"{expected.what}: run() returned an IterableDataset. Return LazyRows(dataset) instead.")
    if is_hf(value, "DatasetDict") or is_hf(value, "IterableDatasetDict"):
        raise StepOutputError(
            f"{expected.what}: run() returned several splits ({', '.join(value)}). Return one dataset."
        )
    if isinstance(value, list | tuple) and value and all(_is_dataset(item) for item in value):
        return _side_by_side(value, expected)
    if isinstance(value, Mapping):
        return _of_columns(value, expected)
    return _of_values(value, expected), False


def _of_lazy(value: LazyRows | LazyRowBatches, expected: Expected) -> tuple[Rows, bool]:
    given = value.value
    if isinstance(given, OutputDatasetMixin) or is_hf(given, "IterableDataset"):
        rows = _fitted(given.rows if isinstance(given, OutputDatasetMixin) else rows_of_iterable(given), expected)
        total = rows.num_rows if value.total_num_rows is None else value.total_num_rows
        return replace(rows, num_rows=total), value.stays_lazy and rows.table is None
    # By default, rows came from the inputs' rows at the same positions, or from unknown ones.
    default = {(node, INPUT): None for node in expected.inputs.values()} if value.row_by_row else None

    def read() -> StatedBatches:
        schema: pa.Schema | None = None
        batches = _row_batches(given, expected) if isinstance(value, LazyRows) else _batches(given, expected)
        for batch, stated in batches:
            # Incompatible types are rejected as soon as they are read.
            if schema is None:
                schema = batch.schema
            elif not batch.schema.equals(schema, check_metadata=True):
                schema = widened(schema, batch.schema, expected.what)
            yield batch, default if stated is None else stated

    # The schema as far as it is known before rows are read; null where it is not.
    known = {} if expected.like is None else {field.name: field for field in expected.like}
    schema = pa.schema([known.get(name, pa.field(name, pa.null())) for name in expected.outputs])
    total = None if value.total_num_rows is None else max(0, value.total_num_rows)
    return Rows.recorded(schema, total, read), value.stays_lazy


def _fitted(rows: Rows, expected: Expected) -> Rows:
    """Returns another step's rows, or a dataset's, under the names of the outputs."""
    if len(rows.columns) == len(expected.outputs) == 1:
        fitted = rows.renamed({rows.columns[0]: expected.outputs[0]})  # a single column may have any name
    elif set(rows.columns) != set(expected.outputs):
        raise expected.wrong(rows.columns)
    else:
        fitted = rows if rows.columns == expected.outputs else rows.select_columns(expected.outputs)
    return replace(fitted, origin=Origin.same(rows.node) if rows.node is not None else Origin(None))


def _of_values(value: Any, expected: Expected) -> Rows:
    if isinstance(value, Iterator | range):
        return Rows.recorded(expected.outputs, None, partial(_row_batches, value, expected))
    if len(expected.outputs) > 1 and isinstance(value, tuple | list) and _are_columns(value, len(expected.outputs)):
        return _of_columns(dict(zip(expected.outputs, map(list, value), strict=True)), expected)[0]
    rows = [] if value is None else value if isinstance(value, tuple | list) else [value]
    made = Rows.recorded(expected.outputs, len(rows), partial(_row_batches, rows, expected))
    return made if rows else replace(made, origin=Origin())


def _are_columns(value: list[Any] | tuple[Any, ...], width: int) -> bool:
    """Whether a value holds columns, not rows: `width` lists, equally long, and not readable as rows."""
    if len(value) != width or not all(isinstance(column, list | tuple) for column in value):
        return False
    lengths = {len(column) for column in value}
    return len(lengths) == 1 and (isinstance(value, tuple) or lengths != {width})


def _of_columns(value: Mapping[str, Any], expected: Expected) -> tuple[Rows, bool]:
    if set(value) != set(expected.outputs):
        raise expected.wrong(value)
    if all(_is_dataset(column) for column in value.values()):
        return _side_by_side([value[name] for name in expected.outputs], expected)
    columns: Batch = {}
    for name in expected.outputs:
        column = value[name]
        # One row may be given as a dictionary of its values.
        is_value = isinstance(column, str | bytes) or not isinstance(column, Iterable)
        columns[name] = [column] if is_value else list(column)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StepOutputError(f"{expected.what}: run() returned columns of different lengths: {lengths}.")
    size = next(iter(lengths.values()), 0)

    def read() -> StatedBatches:
        for start in range(0, size, BATCH_SIZE):
            part = {name: column[start : start + BATCH_SIZE] for name, column in columns.items()}
            yield to_batch(part, expected.what, expected.like), None

    return Rows.recorded(expected.outputs, size, read), False


def _row_batches(value: Values, expected: Expected) -> StatedBatches:
    for portion in _in_portions(value() if callable(value) else value):
        yield to_batch(rows_to_batch(portion, expected.outputs, expected.what), expected.what, expected.like), None


def _in_portions(rows: Iterable[Any]) -> Iterator[list[Any]]:
    portion: list[Any] = []
    due = time.monotonic() + _FLUSH_SECONDS
    for row in rows:
        portion.append(row)
        if len(portion) >= BATCH_SIZE or time.monotonic() >= due:
            yield portion
            portion = []
            due = time.monotonic() + _FLUSH_SECONDS
    if portion:
        yield portion


def _batches(value: Values, expected: Expected) -> StatedBatches:
    for given in value() if callable(value) else value:
        batch, sources = (given.value, given.sources) if isinstance(given, Traced) else (given, None)
        if isinstance(batch, pa.RecordBatch):
            if set(batch.schema.names) != set(expected.outputs):
                raise expected.wrong(batch.schema.names)
            parts = iter([given_batch(batch.select(expected.outputs), expected.what, expected.like)])
        else:  # a batch is read as a whole: its stated origin holds for all of its rows
            parts = rebatched(normalized(batch, expected)[0].read(), 2**62)
        for part in parts:
            yield part, None if sources is None else expected.stated(sources, part.num_rows)


def rows_to_batch(rows: list[Any], outputs: list[str], what: str) -> Batch:
    """Converts rows of any allowed form to columns; each must match the outputs."""
    first = rows[0]
    if isinstance(first, Mapping) and (len(outputs) > 1 or set(first) == set(outputs)):
        wanted = set(outputs)
        for row in rows:
            if not isinstance(row, Mapping) or set(row) != wanted:
                found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise StepOutputError(f"{what}: a row has the columns {found}; expected {', '.join(outputs)}.")
        return {name: [row[name] for row in rows] for name in outputs}
    if len(outputs) == 1:
        return {outputs[0]: [row[0] if isinstance(row, tuple) and len(row) == 1 else row for row in rows]}
    for row in rows:
        if not isinstance(row, tuple | list) or len(row) != len(outputs):
            found = f"{len(row)} values" if isinstance(row, tuple | list) else type(row).__name__
            raise StepOutputError(f"{what}: a row has {found}; expected {len(outputs)} ({', '.join(outputs)}).")
    return dict(zip(outputs, map(list, zip(*rows, strict=True)), strict=True))


def _side_by_side(datasets: Sequence[Any], expected: Expected) -> tuple[Rows, bool]:
    parts = list(map(_rows_of, datasets))
    width = sum(len(part.columns) for part in parts)
    if width != len(expected.outputs):
        raise StepOutputError(
            f"{expected.what}: run() returned {width} columns; expected {len(expected.outputs)} ({expected.outputs})."
        )
    lengths = {rows for part in parts if (rows := part.num_rows) is not None}
    if len(lengths) > 1:
        raise StepOutputError(f"{expected.what}: run() returned datasets of different lengths: {sorted(lengths)}.")
    names = iter(expected.outputs)
    joined = join_columns([part.renamed(dict(zip(part.columns, names, strict=False))) for part in parts])
    origin = joined.origin if all(part.node is not None for part in parts) else Origin(None)
    return replace(joined, origin=origin), any(part.table is None for part in parts)


def _rows_of(value: Any) -> Rows:
    if isinstance(value, OutputDatasetMixin):
        return value.rows
    return value if isinstance(value, Rows) else Rows.of_dataset(value)


def _is_dataset(value: Any) -> TypeGuard[Any]:
    return isinstance(value, OutputDatasetMixin) or is_hf(value, "Dataset")


def is_hf(value: Any, name: str) -> bool:
    """Returns whether a value is an instance of a class of `datasets`, without importing it."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "datasets" for base in type(value).__mro__
    )
