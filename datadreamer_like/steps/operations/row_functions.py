"""A user's function on rows: what `map` and `filter` do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datadreamer_like.errors import StepOutputError
from datadreamer_like.graph.output import BATCH_SIZE, Batch, OutputIterableDataset, RowSource
from datadreamer_like.graph.usage import current_usage

from .transforms import Table, columns_of, is_table, row_tuples, source_like

# Rows that a mapped function is tried on to learn what columns it makes.
_SAMPLES = 10

# A function that takes its time is shown at work this often.
_TELL_SECONDS = 0.5


@dataclass(frozen=True)
class Call:
    """How a user's function is called on rows.

    Attributes:
        function: The function.
        with_indices: Give it positions too.
        input_columns: Columns whose values it gets; empty for the whole row.
        batched: Give it columns of many rows.
        batch_size: How many.
    """

    function: Callable[..., Any]
    with_indices: bool
    input_columns: list[str]
    batched: bool
    batch_size: int

    def decides(self) -> tuple[Any, ...]:
        """Returns what a result depends on."""
        size = self.batch_size if self.batched else None
        return self.function, self.with_indices, tuple(self.input_columns), self.batched, size

    def portions(self, rows: Table) -> Iterator[tuple[Batch, list[Any]]]:
        """Yields the rows in portions, each with what the function returned: a value a row, or one for all."""
        position = 0
        for batch in _rebatched(rows, self.batch_size if self.batched else BATCH_SIZE):
            size = len(next(iter(batch.values()), ()))
            indices = range(position, position + size)
            position += size
            if self.batched:
                given: list[Any] = [batch[name] for name in self.input_columns] or [dict(batch)]
                yield batch, list(self._results([(*given, *([list(indices)] if self.with_indices else []))], indices))
                continue
            arguments: Any
            if self.input_columns:
                arguments = zip(*(batch[name] for name in self.input_columns), strict=True)
            else:
                names = list(batch)
                arguments = ((dict(zip(names, row, strict=True)),) for row in zip(*batch.values(), strict=True))
            if self.with_indices:
                arguments = ((*row, index) for row, index in zip(arguments, indices, strict=True))
            yield batch, list(self._results(arguments, indices))

    def _results(self, arguments: Iterable[tuple[Any, ...]], indices: range) -> Iterator[Any]:
        """Calls the function; tells the progress display of slow ones, and an error's reader which row it was."""
        usage = current_usage()
        due = time.monotonic() + _TELL_SECONDS
        index = indices.start
        try:
            for index, given in enumerate(arguments, indices.start):
                yield self.function(*given)
                if time.monotonic() >= due:
                    usage.note = f"row {index + 1:,}"
                    due = time.monotonic() + _TELL_SECONDS
        except Exception as error:
            where = f"rows {indices.start} to {indices.stop - 1}" if self.batched else f"row {index}"
            error.add_note(f"The function was given {where} of the step's input (counted from 0).")
            raise
        usage.note = ""


def map_rows(rows: Table, call: Call, removed: list[str], total: int | None) -> Table:
    """Applies a function to rows and adds what it returns."""

    def mapped(source: Table) -> Iterator[Batch]:
        for batch, results in call.portions(source):
            new = _columns(results[0]) if call.batched else _gathered(results)
            kept = {name: values for name, values in batch.items() if name not in removed}
            made = {**kept, **new}
            lengths = {name: len(values) for name, values in made.items()}
            if len(set(lengths.values())) > 1:
                raise StepOutputError(
                    f"map: the function gave columns of different lengths: {lengths}. A batched function that changes "
                    "the number of rows must remove the other columns: remove_columns=[...]."
                )
            yield made

    total = total if total is not None else (None if call.batched else rows.num_rows)
    # The names of new columns are known only by calling the function: on one row, now, so that a wrong name or a
    # function that fails is told before hours of work.
    first = _mapped_sample(rows, mapped)
    names = list(first) if first is not None else [name for name in columns_of(rows) if name not in removed]
    return replace(source_like(rows, lambda: mapped(rows), total, names), sample=first)


def _mapped_sample(rows: Table, mapped: Callable[[Table], Iterator[Batch]]) -> Batch | None:
    """Returns a mapped row: the first of a few for which the function returned something."""
    tried = None
    for row in _samples(rows):
        made = next(mapped(_one_row(row)), None)
        tried = tried or made
        if made is not None and not _is_same_row(made, row):
            return made
    return tried


def _is_same_row(made: Batch, row: Batch) -> bool:
    return list(made) == list(row) and all(
        len(values) == 1 and values[0] is row[name][0] for name, values in made.items()
    )


def _samples(rows: Table) -> Iterator[Batch]:
    source = rows.source if isinstance(rows, OutputIterableDataset) else rows
    if isinstance(source, RowSource) and source.sample is not None:
        yield source.sample
        return
    names = columns_of(rows)
    for row in itertools.islice(row_tuples(rows), _SAMPLES):
        yield {name: [value] for name, value in zip(names, row, strict=True)}


def _one_row(row: Batch) -> RowSource:
    return RowSource(list(row), lambda: iter([row]), 1)


def filter_rows(rows: Table, call: Call, total: int | None) -> Table:
    """Keeps rows for which a function returns something true."""

    def batches() -> Iterator[Batch]:
        for batch, results in call.portions(rows):
            flags = list(results[0]) if call.batched else results
            size = len(next(iter(batch.values()), ()))
            if len(flags) != size:
                raise StepOutputError(f"filter: the function returned {len(flags)} values for {size} rows.")
            if all(flags):
                yield batch
            elif any(flags):
                yield {name: list(itertools.compress(values, flags)) for name, values in batch.items()}

    # A row that is dropped has the columns of one that is kept.
    sample = rows.source.sample if isinstance(rows, OutputIterableDataset) else None
    return replace(source_like(rows, batches, total), sample=sample)


def _rebatched(rows: Table, size: int) -> Iterator[Batch]:
    if is_table(rows):
        yield from rows.batches(size)
        return
    held: Batch = {}
    for batch in rows.batches():
        held = {name: held.get(name, []) + values for name, values in batch.items()} if held else dict(batch)
        count = len(next(iter(held.values()), ()))
        start = 0
        while count - start >= size:
            yield {name: values[start : start + size] for name, values in held.items()}
            start += size
        held = {name: values[start:] for name, values in held.items()} if start < count else {}
    if held:
        yield held


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
                # A column that earlier rows did not get is empty there.
                column = columns[name] = [None] * position
            column.append(value)
        for column in columns.values():
            if len(column) <= position:
                column.append(None)
    return columns
