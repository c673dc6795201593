"""Conversion of the return values of `run` to `Rows`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DefinitionError, StepOutputError, did_you_mean, with_article
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.origin import INPUT, Every, From, Origin, Piece, RowsFrom, Several, Stated, Traced
from datadreamer_like.graph.output import OutputDatasetMixin, OutputIterableDataset, rows_of_iterable
from datadreamer_like.graph.rows import BATCH_SIZE, Rows, rebatched
from datadreamer_like.graph.threads import interrupt_check
from datadreamer_like.storage.schemas import widened
from datadreamer_like.storage.values import given_batch, to_batch

from ..operations.transforms import StatedBatches, join_columns
from .lazy_rows import LazyRowBatches, LazyRows
from .shapes import BatchReader, RowReader, Shaped, Shapes, is_hf, is_table, lazy_rows

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

    @cached_property
    def shapes(self) -> Shapes:
        """What a value means for the outputs."""
        return Shapes(self.outputs, self.what)

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
    if is_hf(value, "IterableDataset") or _hold_iterables(value, expected):
        raise StepOutputError(f"{expected.what}: run() returned an IterableDataset. Return LazyRows(dataset) instead.")
    if is_hf(value, "DatasetDict") or is_hf(value, "IterableDatasetDict"):
        raise StepOutputError(
            f"{expected.what}: run() returned several splits ({', '.join(value)}). Return one dataset."
        )
    if isinstance(value, Mapping) and set(value) == set(expected.outputs) and all(map(_is_dataset, value.values())):
        return _side_by_side({name: value[name] for name in expected.outputs}, expected)
    if isinstance(value, list | tuple) and value and any(map(is_table, value[: len(expected.outputs)])):
        return _side_by_side(value, expected)
    if isinstance(value, list | tuple) and len(value) == len(expected.outputs) and all(map(_is_dataset, value)):
        return _side_by_side(dict(zip(expected.outputs, value, strict=True)), expected)
    return _of_shaped(expected.shapes.of_value(value), expected), False


def _of_lazy(value: LazyRows | LazyRowBatches, expected: Expected) -> tuple[Rows, bool]:
    given: Any = value.value
    batched = isinstance(value, LazyRowBatches)
    total = None if value.total_num_rows is None else max(0, value.total_num_rows)
    if isinstance(given, OutputDatasetMixin) or is_hf(given, "IterableDataset"):
        rows = _rows_of(given)
        if is_table(given) and set(rows.columns) != set(expected.outputs):
            raise expected.wrong(rows.columns)
        rows = _fitted(rows, expected)
        return replace(rows, num_rows=rows.num_rows if total is None else total), not value.save and rows.table is None
    if isinstance(given, list | tuple) and _hold_iterables(given, expected):
        rows, lazy = _side_by_side(given, expected, shortest=True)
        return replace(rows, num_rows=total), lazy and not value.save
    columns = expected.shapes.lazy_columns(given)
    made: Callable[[], Iterable[Any]]
    if columns is not None:
        made = lazy_rows(columns, batched)
    elif callable(given):
        made = given
    elif batched and isinstance(given, Iterator | list):
        made = partial(iter, given)
    else:
        return normalized(given, expected)
    in_batches = batched and columns is None
    # By default, rows came from the inputs' rows at the same positions, or from unknown ones.
    default = {(node, INPUT): None for node in expected.inputs.values()} if value.row_by_row else None

    def read() -> StatedBatches:
        schema: pa.Schema | None = None
        batches = _batches(made(), expected) if in_batches else _row_batches(made(), expected, lazy=True)
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
    return Rows.recorded(schema, total, read), not value.save and (columns is not None or callable(given))


def _fitted(rows: Rows, expected: Expected) -> Rows:
    """Returns another step's rows, or a dataset's, under the names of the outputs."""
    if len(rows.columns) == len(expected.outputs) == 1:
        fitted = rows.renamed({rows.columns[0]: expected.outputs[0]})  # a single column may have any name
    elif set(rows.columns) != set(expected.outputs):
        raise expected.wrong(rows.columns)
    else:
        fitted = rows if rows.columns == expected.outputs else rows.select_columns(expected.outputs)
    return replace(fitted, origin=Origin.same(rows.node) if rows.node is not None else Origin(None))


def _of_shaped(shaped: Shaped, expected: Expected) -> Rows:
    if isinstance(shaped, dict):
        size = len(next(iter(shaped.values()), []))

        def read() -> StatedBatches:
            for start in range(0, size, BATCH_SIZE):
                part = {name: column[start : start + BATCH_SIZE] for name, column in shaped.items()}
                yield to_batch(part, expected.what, expected.like), None

        return Rows.recorded(expected.outputs, size, read)
    count = len(shaped) if isinstance(shaped, Sequence) else None
    if count == 0:
        return replace(Rows.recorded(expected.outputs, 0, lambda: iter(())), origin=Origin())
    first = shaped[0] if isinstance(shaped, Sequence) else None
    named = first is None or (isinstance(first, Mapping) and expected.shapes.names_output(first))
    return Rows.recorded(expected.outputs, count, partial(_row_batches, shaped, expected, named))


def _row_batches(rows: Iterable[Any], expected: Expected, dicts: bool = True, lazy: bool = False) -> StatedBatches:
    reader = RowReader(expected.shapes, dicts, lazy)
    for portion in _in_portions(rows):
        yield to_batch(reader.columns(portion), expected.what, expected.like), None


def _in_portions(rows: Iterable[Any]) -> Iterator[list[Any]]:
    portion: list[Any] = []
    due, check = time.monotonic() + _FLUSH_SECONDS, interrupt_check()
    for row in rows:
        check()
        portion.append(row)
        if len(portion) >= BATCH_SIZE or time.monotonic() >= due:
            yield portion
            portion = []
            due = time.monotonic() + _FLUSH_SECONDS
    if portion:
        yield portion


def _batches(batches: Iterable[Any], expected: Expected) -> StatedBatches:
    reader, check = BatchReader(expected.shapes), interrupt_check()
    for given in batches:
        if isinstance(given, Traced):
            batch, sources = given.value, given.sources
        else:
            check()
            batch, sources = given, None
        if isinstance(batch, pa.RecordBatch):
            if set(batch.schema.names) != set(expected.outputs):
                raise expected.wrong(batch.schema.names)
            parts = iter([given_batch(batch.select(expected.outputs), expected.what, expected.like)])
        elif type(batch) is dict and list(batch) == expected.outputs and _are_lists(batch.values()):
            parts = iter([to_batch(batch, expected.what, expected.like)])
        elif isinstance(batch, Rows) or _is_dataset(batch):
            # A batch is read as a whole: its stated origin holds for all of its rows.
            parts = rebatched(normalized(batch, expected)[0].read(), 2**62)
        elif columns := reader.columns(batch):
            parts = iter([to_batch(columns, expected.what, expected.like)])
        else:
            parts = iter(())
        for part in parts:
            yield part, None if sources is None else expected.stated(sources, part.num_rows)


def _are_lists(columns: Collection[Any]) -> bool:
    """Returns whether columns are lists of the same length, other than 0, so that nothing has to be converted."""
    if not all(type(column) is list for column in columns):
        return False
    lengths = {len(column) for column in columns}
    return len(lengths) == 1 and 0 not in lengths


def _side_by_side(
    given: Mapping[str, Any] | Sequence[Any], expected: Expected, shortest: bool = False
) -> tuple[Rows, bool]:
    """Joins datasets by the names of their columns; `given` by output, each has one column of any name."""
    if isinstance(given, Mapping):
        parts = [_rows_of(one) for one in given.values()]
        if any(len(part.columns) != 1 for part in parts):
            raise expected.wrong([column for part in parts for column in part.columns])
        parts = [part.renamed({part.columns[0]: name}) for name, part in zip(given, parts, strict=True)]
    else:
        for one in given:
            if not is_table(one):
                raise expected.shapes.wrong(f"{with_article(type(one))} next to a dataset")
        parts = [_rows_of(one) for one in given]
        names = [column for part in parts for column in part.columns]
        if sorted(names) != sorted(expected.outputs):
            raise expected.wrong(names)
    lengths = {rows for part in parts if (rows := part.num_rows) is not None}
    if len(lengths) > 1 and not shortest:
        raise StepOutputError(f"{expected.what}: run() returned datasets of different lengths: {sorted(lengths)}.")
    joined = join_columns(parts).select_columns(expected.outputs)
    origin = joined.origin if all(part.node is not None for part in parts) else Origin(None)
    return replace(joined, origin=origin), any(part.table is None for part in parts)


def _rows_of(value: Any) -> Rows:
    if isinstance(value, OutputDatasetMixin):
        return value.rows
    if is_hf(value, "IterableDataset"):
        return rows_of_iterable(value)
    return value if isinstance(value, Rows) else Rows.of_dataset(value)


def _hold_iterables(value: Any, expected: Expected) -> bool:
    return isinstance(value, list | tuple) and any(
        is_hf(one, "IterableDataset") or (is_table(one) and isinstance(one, OutputIterableDataset))
        for one in value[: len(expected.outputs)]
    )


def _is_dataset(value: Any) -> TypeGuard[Any]:
    return isinstance(value, OutputDatasetMixin) or is_hf(value, "Dataset")
