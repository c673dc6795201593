"""What a step's `run` may return, brought to one form by its shape and the number of outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeGuard

from datadreamer_like.errors import StepOutputError
from datadreamer_like.graph.output import BATCH_SIZE, Batch, OutputDataset, OutputIterableDataset, RowSource

# Slow rows are handed on this often, so that progress is seen and kept; quick ones in full batches.
_FLUSH_SECONDS = 0.5

Rows = Callable[[], Iterable[Any]] | Iterable[Any]


@dataclass(frozen=True)
class _Lazy:
    value: Rows
    total_num_rows: int | None = None
    auto_progress: bool = True
    save: bool = False
    save_writer_batch_size: int | None = None

    @property
    def stays_lazy(self) -> bool:
        """Whether rows are made when they are asked for; an iterator gives its rows once, so they are kept."""
        return not self.save and not isinstance(self.value, Iterator)


class LazyRows(_Lazy):
    """Rows that a step makes when they are asked for.

    An iterator, which can be read only once, is read at once and its rows are kept.

    Args:
        value: A generator function, an iterator, or an `IterableDataset` that yields rows: dictionaries, tuples in the
            order of the outputs, or single values where there is one output.
        total_num_rows: How many rows there will be, where that is known.
        auto_progress: Count the rows as progress.
        save: Make all rows now and keep them on disk.
        save_writer_batch_size: Rows written at a time.
    """


class LazyRowBatches(_Lazy):
    """Batches of rows that a step makes when they are asked for; of an iterator at once, as with `LazyRows`.

    Args:
        value: A generator function or iterator that yields batches: a dictionary of columns, a list of rows, or a tuple
            of columns in the order of the outputs.
        total_num_rows: How many rows there will be, where that is known.
        auto_progress: Count the rows as progress.
        save: Make all rows now and keep them on disk.
        save_writer_batch_size: Rows written at a time.
    """


Result = OutputDataset | OutputIterableDataset | RowSource


def normalized(value: Any, outputs: list[str], what: str) -> tuple[Result, bool]:
    """Brings what `run` returned to one form.

    Args:
        value: What `run` returned.
        outputs: Names of the registered outputs, in order.
        what: The step, for messages.

    Returns:
        The rows, and whether they stay lazy.

    Raises:
        StepOutputError: The value does not fit the outputs.
    """
    if isinstance(value, LazyRows):
        return RowSource(outputs, _row_batches(value.value, outputs, what), value.total_num_rows), value.stays_lazy
    if isinstance(value, LazyRowBatches):
        return RowSource(outputs, _batches(value.value, outputs, what), value.total_num_rows), value.stays_lazy
    if isinstance(value, OutputDataset | OutputIterableDataset):
        _check_columns(value.column_names, outputs, what)
        return _reordered(value, outputs), isinstance(value, OutputIterableDataset)
    if _is_hf(value, "IterableDataset"):
        raise StepOutputError(f"{what}: run() returned an IterableDataset. Return LazyRows(dataset) instead.")
    if _is_hf(value, "DatasetDict") or _is_hf(value, "IterableDatasetDict"):
        raise StepOutputError(f"{what}: run() returned several splits ({', '.join(value)}). Return one dataset.")
    if _is_hf(value, "Dataset"):
        _check_columns(value.column_names, outputs, what)
        return _of_dataset(value, outputs), False
    if isinstance(value, list | tuple) and value and all(_is_dataset(item) for item in value):
        return _side_by_side(value, outputs, what)
    if isinstance(value, Mapping):
        return _of_columns(value, outputs, what)
    return _of_rows(value, outputs, what), False


def _of_rows(value: Any, outputs: list[str], what: str) -> RowSource:
    if value is None:
        return _source([], outputs, what)
    if isinstance(value, tuple | list):
        if len(outputs) > 1 and _are_columns(value, outputs):
            columns = {name: list(column) for name, column in zip(outputs, value, strict=True)}
            return _of_columns(columns, outputs, what)[0]  # type: ignore[return-value]
        return _source(value, outputs, what)
    if isinstance(value, Iterator | range):
        return RowSource(outputs, _row_batches(value, outputs, what))
    return _source([value], outputs, what)


def _are_columns(value: list[Any] | tuple[Any, ...], outputs: list[str]) -> bool:
    """Tells columns from rows: as many lists as outputs, all equally long, and not also readable as rows."""
    if len(value) != len(outputs) or not all(isinstance(column, list | tuple) for column in value):
        return False
    if isinstance(value, tuple):
        return len({len(column) for column in value}) == 1
    readable_as_rows = all(len(row) == len(outputs) for row in value)
    return not readable_as_rows and len({len(column) for column in value}) == 1


def _of_columns(value: Mapping[str, Any], outputs: list[str], what: str) -> tuple[Result, bool]:
    if set(value) != set(outputs):
        raise _wrong_columns(list(value), outputs, what)
    if all(_is_dataset(column) for column in value.values()):
        return _side_by_side([value[name] for name in outputs], outputs, what)
    columns: Batch = {}
    for name in outputs:
        column = value[name]
        if isinstance(column, str | bytes) or not isinstance(column, Iterable):
            # One row, given as a dictionary of its values.
            columns[name] = [column]
        else:
            columns[name] = list(column)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StepOutputError(f"{what}: run() returned columns of different lengths: {lengths}.")
    size = next(iter(lengths.values()), 0)

    def batches() -> Iterator[Batch]:
        for start in range(0, size, BATCH_SIZE):
            yield {name: column[start : start + BATCH_SIZE] for name, column in columns.items()}

    return RowSource(outputs, batches, size), False


def _source(rows: list[Any] | tuple[Any, ...], outputs: list[str], what: str) -> RowSource:
    return RowSource(outputs, _row_batches(lambda: iter(rows), outputs, what), len(rows))


def _row_batches(value: Rows, outputs: list[str], what: str) -> Callable[[], Iterator[Batch]]:
    def batches() -> Iterator[Batch]:
        for portion in _in_portions(value() if callable(value) else value):
            yield rows_to_batch(portion, outputs, what)

    return batches


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


def _batches(value: Rows, outputs: list[str], what: str) -> Callable[[], Iterator[Batch]]:
    def batches() -> Iterator[Batch]:
        for batch in value() if callable(value) else value:
            result, _ = normalized(batch, outputs, what)
            yield from result.batches()

    return batches


def rows_to_batch(rows: list[Any], outputs: list[str], what: str) -> Batch:
    """Turns rows of any of the allowed shapes into columns.

    Raises:
        StepOutputError: A row does not fit the outputs.
    """
    first = rows[0]
    if isinstance(first, Mapping) and (len(outputs) > 1 or set(first) == set(outputs)):
        expected = set(outputs)
        for row in rows:
            if not isinstance(row, Mapping) or set(row) != expected:
                found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise StepOutputError(f"{what}: a row has the columns {found}; expected {', '.join(outputs)}.")
        return {name: [row[name] for row in rows] for name in outputs}
    if len(outputs) == 1:
        return {outputs[0]: [row[0] if isinstance(row, tuple) and len(row) == 1 else row for row in rows]}
    for row in rows:
        if not isinstance(row, tuple | list) or len(row) != len(outputs):
            found = f"{len(row)} values" if isinstance(row, tuple | list) else type(row).__name__
            raise StepOutputError(f"{what}: a row has {found}; expected {len(outputs)} ({', '.join(outputs)}).")
    return dict(zip(outputs, (list(column) for column in zip(*rows, strict=True)), strict=True))


def _side_by_side(datasets: list[Any] | tuple[Any, ...], outputs: list[str], what: str) -> tuple[Result, bool]:
    parts = [
        part if isinstance(part, OutputDataset | OutputIterableDataset) else _of_dataset(part) for part in datasets
    ]
    width = sum(len(_names(part)) for part in parts)
    if width != len(outputs):
        raise StepOutputError(f"{what}: run() returned {width} columns; expected {len(outputs)} ({outputs}).")
    lengths = {rows for part in parts if (rows := part.num_rows) is not None}
    if len(lengths) > 1:
        raise StepOutputError(f"{what}: run() returned datasets of different lengths: {sorted(lengths)}.")

    def batches() -> Iterator[Batch]:
        rows = zip(*(_tuples(part) for part in parts), strict=True)
        while portion := list(islice(rows, BATCH_SIZE)):
            columns = zip(*(tuple(value for group in row for value in group) for row in portion), strict=True)
            yield dict(zip(outputs, map(list, columns), strict=True))

    lazy = any(isinstance(part, OutputIterableDataset) for part in parts)
    return RowSource(outputs, batches, next(iter(lengths), None)), lazy


def _tuples(part: Result) -> Iterator[tuple[Any, ...]]:
    for batch in part.batches():
        yield from zip(*batch.values(), strict=True)


def _names(part: Result) -> list[str]:
    return part.columns if isinstance(part, RowSource) else part.column_names


def _of_dataset(dataset: Any, outputs: list[str] | None = None) -> RowSource:
    names = outputs or list(dataset.column_names)
    # A single column may have any name.
    sources = names if set(names) == set(dataset.column_names) else list(dataset.column_names)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(dataset), BATCH_SIZE):
            batch = dataset[start : start + BATCH_SIZE]
            yield {name: list(batch[source]) for name, source in zip(names, sources, strict=True)}

    return RowSource(names, batches, len(dataset))


def _reordered(value: OutputDataset | OutputIterableDataset, outputs: list[str]) -> Result:
    if value.column_names == outputs:
        return value
    renamed = value.num_columns == 1  # a single column may have any name

    def batches() -> Iterator[Batch]:
        for batch in value.batches():
            yield {outputs[0]: next(iter(batch.values()))} if renamed else {name: batch[name] for name in outputs}

    return RowSource(outputs, batches, value.num_rows)


def _check_columns(found: list[str], outputs: list[str], what: str) -> None:
    if len(found) == 1 and len(outputs) == 1:
        return
    if set(found) != set(outputs):
        raise _wrong_columns(found, outputs, what)


def _wrong_columns(found: list[str], outputs: list[str], what: str) -> StepOutputError:
    return StepOutputError(
        f"{what}: run() returned the columns {', '.join(map(str, found))}; expected {', '.join(outputs)}."
    )


def _is_dataset(value: Any) -> TypeGuard[Any]:
    return isinstance(value, OutputDataset | OutputIterableDataset) or _is_hf(value, "Dataset")


def _is_hf(value: Any, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "datasets" for base in type(value).__mro__
    )
