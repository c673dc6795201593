"""Calling a user's function on rows, for `map` and `filter`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import StepOutputError
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.node import reading_engine
from datadreamer_like.graph.origin import INPUT, Every, Stated
from datadreamer_like.graph.rows import BATCH_SIZE, Batch, Rows, rebatched
from datadreamer_like.graph.usage import current_usage
from datadreamer_like.storage.values import to_batch, to_columns

# Rows on which a mapped function is tried to find its columns.
_SAMPLES = 10

# How often the progress of a slow function is reported.
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Call:
    """How a user's function is called on rows.

    Attributes:
        function: The function.
        with_indices: Pass positions too.
        input_columns: Columns whose values are passed; empty for the whole row.
        batched: Pass columns of many rows.
        batch_size: Rows per call if `batched`.
    """

    function: Callable[..., Any]
    with_indices: bool
    input_columns: list[str]
    batched: bool
    batch_size: int

    def fingerprint_values(self) -> tuple[Any, ...]:
        """Returns the values that determine the result."""
        size = self.batch_size if self.batched else None
        return self.function, self.with_indices, tuple(self.input_columns), self.batched, size

    def portions(self, rows: Rows, engine: Engine) -> Iterator[tuple[pa.RecordBatch, list[Any]]]:
        """Yields batches of rows, each with the function's results: one per row, or a single one if batched."""
        size = min(BATCH_SIZE, engine.batch_size or BATCH_SIZE)
        batches = rebatched(rows.read(), self.batch_size) if self.batched else _sliced(rows.read(), size)
        what = "map or filter" if rows.node is None else f'map or filter of "{rows.node.name}"'
        return engine.batches(self.results, _placed(batches), what, {"the function": self.function})

    def results(self, batches: Iterator[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[pa.RecordBatch, list[Any]]]:
        """Calls the function on batches, each with the position of its first row."""
        for position, batch in batches:
            indices = range(position, position + batch.num_rows)
            columns = to_columns(batch.select(self.input_columns) if self.input_columns else batch)
            if self.batched:
                given: list[Any] = [columns[name] for name in self.input_columns] or [columns]
                yield batch, list(self._results([(*given, *([list(indices)] if self.with_indices else []))], indices))
                continue
            arguments: Any
            if self.input_columns:
                arguments = zip(*(columns[name] for name in self.input_columns), strict=True)
            else:
                names = list(columns)
                arguments = ((dict(zip(names, row, strict=True)),) for row in zip(*columns.values(), strict=True))
            if self.with_indices:
                arguments = ((*row, index) for row, index in zip(arguments, indices, strict=True))
            yield batch, list(self._results(arguments, indices))

    def _results(self, arguments: Iterable[tuple[Any, ...]], indices: range) -> Iterator[Any]:
        """Calls the function, reports progress, and adds the position of the row to an error."""
        usage = current_usage()
        due = time.monotonic() + _PROGRESS_SECONDS
        index = indices.start
        try:
            for index, given in enumerate(arguments, indices.start):
                yield self.function(*given)
                if time.monotonic() >= due:
                    usage.note = f"row {index + 1:,}"
                    due = time.monotonic() + _PROGRESS_SECONDS
        except Exception as error:
            where = f"rows {indices.start} to {indices.stop - 1}" if self.batched else f"row {index}"
            error.add_note(f"The function was given {where} of the step's input (counted from 0).")
            raise
        usage.note = ""


def map_rows(rows: Rows, call: Call, removed: list[str], total: int | None, lazy: bool) -> Rows:
    """Applies a function to rows and adds the columns it returns.

    If a batched function returns as many rows as it was given, they are assumed to be in the same order; otherwise each
    row's origin is the whole batch.
    """

    def mapped(source: Rows, engine: Engine) -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        place = 0
        for batch, results in call.portions(source, engine):
            new = _columns(results[0]) if call.batched else _gathered(results)
            made = _with_new(batch, new, removed)
            taken = range(place, place + batch.num_rows)
            place += batch.num_rows
            piece = taken if made.num_rows == batch.num_rows else Every(taken)
            yield made, {} if rows.node is None else {(rows.node, INPUT): piece}

    total = total if total is not None else (None if call.batched else rows.num_rows)
    # New column names are known only after a call. Lazy rows need them before they are read, so the function is called
    # on one row now; this also reveals errors early.
    first = _mapped_sample(rows, mapped) if lazy else None
    kept = [column for column in rows.schema if column.name not in removed]
    schema = first.schema if first is not None else pa.schema(kept)
    return replace(Rows.recorded(schema, total, lambda: mapped(rows, reading_engine())), sample=first)


def _with_new(batch: pa.RecordBatch, new: Batch, removed: list[str]) -> pa.RecordBatch:
    made = to_batch(new, "map", batch.schema)
    names = [name for name in batch.schema.names if name not in removed or name in new]
    names += [name for name in new if name not in names]
    fields, arrays = [], []
    for name in names:
        source = made if name in new else batch
        fields.append(source.schema.field(name))
        arrays.append(source.column(name))
    lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise StepOutputError(
            f"map: the function returned columns of different lengths: {lengths}. A batched function that changes "
            "the number of rows must remove the other columns: remove_columns=[...]."
        )
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


_Mapped = Callable[[Rows, Engine], Iterator[tuple[pa.RecordBatch, Stated | None]]]


def _mapped_sample(rows: Rows, mapped: _Mapped) -> pa.RecordBatch | None:
    """Returns a mapped row: the first of a few that the function changed."""
    tried = None
    for row in _samples(rows):
        one = Rows.of_table(pa.Table.from_batches([row]), node=rows.node)
        made, _ = next(mapped(one, Engine()), (None, None))
        tried = tried or made
        if made is not None and made.schema.names != row.schema.names:
            return made
        if made is not None and not made.equals(row):
            return made
    return tried


def _samples(rows: Rows) -> Iterator[pa.RecordBatch]:
    if rows.sample is not None:
        yield rows.sample
        return
    count = 0
    for batch in rows.read() if rows.table is None else rows.table.batches(_SAMPLES):
        for place in range(batch.num_rows):
            yield batch.slice(place, 1)
            count += 1
            if count == _SAMPLES:
                return


def filter_rows(rows: Rows, call: Call, total: int | None) -> Rows:
    """Keeps rows for which a function returns a true value."""

    def read() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        place = 0
        for batch, results in call.portions(rows, reading_engine()):
            flags = list(results[0]) if call.batched else results
            if len(flags) != batch.num_rows:
                raise StepOutputError(f"filter: the function returned {len(flags)} values for {batch.num_rows} rows.")
            chosen = np.flatnonzero(np.fromiter(map(bool, flags), dtype=bool, count=len(flags)))
            if len(chosen):
                piece = {(rows.node, INPUT): chosen + place} if rows.node is not None else {}
                yield batch if len(chosen) == batch.num_rows else batch.take(pa.array(chosen)), piece
            place += batch.num_rows

    return replace(Rows.recorded(rows.schema, total, read), sample=rows.sample)


def _placed(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    position = 0
    for batch in batches:
        yield position, batch
        position += batch.num_rows


def _sliced(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def _columns(result: Any) -> Batch:
    if result is None:
        return {}
    if not isinstance(result, Mapping):
        raise StepOutputError(f"map: a batched function returned {type(result).__name__}; expected a dict of columns.")
    return {name: list(values) for name, values in result.items()}


def _gathered(results: list[Any]) -> Batch:
    columns: Batch = {}
    for position, result in enumerate(results):
        if result is None:
            result = {}
        if not isinstance(result, Mapping):
            raise StepOutputError(f"map: the function returned {type(result).__name__} for a row; expected a dict.")
        for name, value in result.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = [None] * position
            column.append(value)
        for column in columns.values():
            if len(column) <= position:
                column.append(None)
    return columns
