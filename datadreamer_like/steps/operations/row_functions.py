"""Calling a user's function on rows, for `map` and `filter`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, takewhile
from typing import Any

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import ArgumentTypeError, StepOutputError, StepOutputTypeError
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.node import reading_engine
from datadreamer_like.graph.origin import Every
from datadreamer_like.graph.rows import BATCH_SIZE, Batch, Rows, rebatched
from datadreamer_like.graph.threads import interrupt_check
from datadreamer_like.graph.usage import current_usage
from datadreamer_like.storage.schemas import widened
from datadreamer_like.storage.values import BAD_COLUMN_NAME, frame_columns, is_column_name, to_batch, to_columns

from .transforms import StatedBatches, placed, stated

# Rows on which a mapped function is tried to find its columns.
_SAMPLES = 10

# How often the progress of a slow function is reported.
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Call:
    """How a user's function is called on rows; the fields are arguments of `Operations.map`."""

    operation: str
    function: Any
    with_indices: bool
    input_columns: list[str]
    batched: bool
    batch_size: int

    def __post_init__(self) -> None:
        if not callable(self.function):
            kind = type(self.function).__name__
            raise ArgumentTypeError(f"{self.operation}: {self.function!r} is {kind}; expected a function of a row.")

    def __fingerprint__(self) -> tuple[Any, ...]:
        size = self.batch_size if self.batched else None
        return self.function, self.with_indices, tuple(self.input_columns), self.batched, size

    def portions(self, rows: Rows, engine: Engine, start: int = 0) -> Iterator[tuple[pa.RecordBatch, list[Any]]]:
        """Yields batches of rows, each with the function's results: one per row, or a single one if batched.

        `start` is the position of the first row.
        """
        batches = rebatched(rows.read(), self.batch_size) if self.batched else _slices(rows, engine)
        return self._called(rows, engine, placed(batches, start))

    def portions_after(
        self, tried: list[tuple[pa.RecordBatch, Any]], rows: Rows, engine: Engine
    ) -> Iterator[tuple[pa.RecordBatch, list[Any]]]:
        """Yields what `portions` does, without calling the function again on first rows that it was tried on."""
        batches = _slices(rows, engine)
        first = next(batches, None)
        if first is None:
            return
        same = (first.slice(place, 1).equals(row) for place, (row, _) in enumerate(tried[: first.num_rows]))
        known = [result for _, result in tried[: sum(takewhile(bool, same))]]
        left = first.slice(len(known))
        if not left.num_rows:
            yield first, known
            left, first = next(batches, None), None
        if left is None:
            return
        called = self._called(rows, engine, placed(chain([left], batches), len(known)))
        for batch, results in called:
            yield (batch, results) if first is None else (first, known + results)
            first = None

    def _called(
        self, rows: Rows, engine: Engine, batches: Iterator[tuple[int, pa.RecordBatch]]
    ) -> Iterator[tuple[pa.RecordBatch, list[Any]]]:
        what = self.operation if rows.node is None else f'{self.operation} of "{rows.node.name}"'
        return engine.batches(partial(self.results, what), batches, what, {"the function": self.function})

    def results(
        self, what: str, batches: Iterator[tuple[int, pa.RecordBatch]]
    ) -> Iterator[tuple[pa.RecordBatch, list[Any]]]:
        """Calls the function on batches, each with the position of its first row."""
        for position, batch in batches:
            indices = range(position, position + batch.num_rows)
            columns = to_columns(batch.select(self.input_columns) if self.input_columns else batch)
            if self.batched:
                given: list[Any] = [columns[name] for name in self.input_columns] or [columns]
                called = [(*given, *([list(indices)] if self.with_indices else []))]
                yield batch, list(self._results(called, indices, what))
                continue
            arguments: Any
            if self.input_columns:
                arguments = zip(*(columns[name] for name in self.input_columns), strict=True)
            else:
                names = list(columns)
                arguments = ((dict(zip(names, row, strict=True)),) for row in zip(*columns.values(), strict=True))
            if self.with_indices:
                arguments = ((*row, index) for row, index in zip(arguments, indices, strict=True))
            yield batch, list(self._results(arguments, indices, what))

    def _results(self, arguments: Iterable[tuple[Any, ...]], indices: range, what: str) -> Iterator[Any]:
        """Calls the function, reports progress, and adds the step, the row's position and columns to an error."""
        usage, check = current_usage(), interrupt_check()
        due = time.monotonic() + _PROGRESS_SECONDS
        index = indices.start
        try:
            for index, given in enumerate(arguments, indices.start):
                result = self.function(*given)
                check()
                yield result
                if time.monotonic() >= due:
                    usage.note = f"row {index + 1:,}"
                    due = time.monotonic() + _PROGRESS_SECONDS
        except Exception as error:
            where = f"rows {indices.start} to {indices.stop - 1}" if self.batched else f"row {index}"
            columns = ", ".join(self.input_columns or given[0])
            error.add_note(f"The function of {what} was given {where} of its input (counted from 0), with: {columns}.")
            raise
        usage.note = ""


def map_rows(rows: Rows, function: Call, remove_columns: list[str], total: int | None, lazy: bool) -> Rows:
    """Applies a function to rows and adds the columns it returns.

    If a batched function returns as many rows as it was given, they are assumed to be in the same order; otherwise each
    row's origin is the whole batch.
    """

    def mapped(portions: Iterable[tuple[pa.RecordBatch, list[Any]]]) -> StatedBatches:
        place = 0
        known: pa.Schema | None = None
        for batch, results in portions:
            made = _with_new(batch, _columns(results, function.batched), remove_columns)
            known = made.schema if known is None else widened(known, made.schema, "map")
            taken = range(place, place + batch.num_rows)
            place += batch.num_rows
            yield made, stated(rows, taken if made.num_rows == batch.num_rows else Every(taken))

    if total is None and not function.batched:
        total = rows.num_rows
    # New column names are known only after a call. Lazy rows need them before they are read, so the function is called
    # on one row now; this also reveals errors early. The first pass keeps these results, unless the script has changed
    # what the function uses since; what the call itself changes counts as it was before.
    keeps = lazy and not function.batched
    used = fingerprint(function, function.operation) if keeps else None
    tried: list[tuple[pa.RecordBatch, Any]] = []
    first = _mapped_sample(rows, function, mapped, tried) if lazy else None
    kept = {"tried": tried} if keeps else {}

    def read() -> StatedBatches:
        engine, taken = reading_engine(), kept.pop("tried", None)
        if taken is None or fingerprint(function, function.operation) != used:
            return mapped(function.portions(rows, engine))
        return mapped(function.portions_after(taken, rows, engine))

    schema = (
        first.schema
        if first is not None
        else pa.schema([column for column in rows.schema if column.name not in remove_columns])
    )
    return replace(Rows.recorded(schema, total, read), sample=first)


def _mapped_sample(
    rows: Rows,
    function: Call,
    mapped: Callable[[Iterable[tuple[pa.RecordBatch, list[Any]]]], StatedBatches],
    tried: list[tuple[pa.RecordBatch, Any]],
) -> pa.RecordBatch | None:
    """Returns a mapped row: the first of a few that the function changed; adds these and the results to `tried`."""
    samples: Iterable[pa.RecordBatch] = [rows.sample]
    if rows.sample is None:
        batches = rows.read() if rows.table is None else rows.table.batches(_SAMPLES)
        samples = islice((batch.slice(place, 1) for batch in batches for place in range(batch.num_rows)), _SAMPLES)
    first = None
    for place, row in enumerate(samples):
        one = Rows.of_table(pa.Table.from_batches([row]), node=rows.node)
        [(_, results)] = function.portions(one, Engine(), place)
        tried += [(row, result) for result in results]
        made, _ = next(mapped([(row, results)]), (None, None))
        first = first or made
        if made is not None and not (made.schema.names == row.schema.names and made.equals(row)):
            return made
    return first


def _slices(rows: Rows, engine: Engine) -> Iterator[pa.RecordBatch]:
    size = min(BATCH_SIZE, engine.batch_size or BATCH_SIZE)
    return (part.slice(start, size) for part in rows.read() for start in range(0, part.num_rows, size))


def _with_new(batch: pa.RecordBatch, new: Batch, removed: list[str]) -> pa.RecordBatch:
    for name in new:
        if isinstance(name, str) and not is_column_name(name):
            raise StepOutputTypeError(f"map: {BAD_COLUMN_NAME.format(name)}")
    made = to_batch(new, "map", batch.schema)
    names = [name for name in batch.schema.names if name not in removed or name in new]
    names += [name for name in new if name not in names]
    sources = {name: made if name in new else batch for name in names}
    arrays = [source.column(name) for name, source in sources.items()]
    lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise StepOutputError(
            f"map: the function returned columns of different lengths: {lengths}. A batched function that changes "
            "the number of rows must remove the other columns: remove_columns=[...]."
        )
    fields = [source.schema.field(name) for name, source in sources.items()]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def filter_rows(rows: Rows, function: Call, total: int | None) -> Rows:
    """Keeps rows for which a function returns a true value."""

    def read() -> StatedBatches:
        place = 0
        for batch, results in function.portions(rows, reading_engine()):
            flags = _column("filter", results[0]) if function.batched else results
            if len(flags) != batch.num_rows:
                raise StepOutputError(f"filter: the function returned {len(flags)} values for {batch.num_rows} rows.")
            chosen = np.flatnonzero(np.fromiter(map(bool, flags), dtype=bool, count=len(flags)))
            if len(chosen):
                kept = batch if len(chosen) == batch.num_rows else batch.take(pa.array(chosen))
                yield kept, stated(rows, chosen + place)
            place += batch.num_rows

    return replace(Rows.recorded(rows.schema, total, read), sample=rows.sample)


def _columns(results: list[Any], batched: bool) -> Batch:
    """Returns the columns of a function's results: one dictionary per row, or a single one of columns if batched.

    Instead of a dictionary of columns it may be a table of Arrow or a data frame.
    """
    if batched:
        results = [columns if (columns := frame_columns(result)) is not None else result for result in results]
    for result in results:
        if not isinstance(result, Mapping | None):
            expected = "a batch; expected a dict of columns" if batched else "a row; expected a dict"
            raise StepOutputError(f"map: the function returned {type(result).__name__} for {expected}.")
    if batched:
        return {name: _column(f'map, column "{name}"', values) for name, values in (results[0] or {}).items()}
    names = dict.fromkeys(name for result in results for name in result or ())
    return {name: [result.get(name) if result else None for result in results] for name in names}


def _column(what: str, values: Any) -> list[Any]:
    """Returns a column that a batched function returned; one value is not a column, and a set has no order."""
    is_column = isinstance(values, Iterable) and not isinstance(values, str | bytes | bytearray | Mapping | Set)
    if not is_column or getattr(values, "ndim", 1) == 0:
        raise StepOutputError(
            f"{what}: the function returned {type(values).__name__}; expected a list with one value for each row, "
            "since it is batched."
        )
    return list(values)
