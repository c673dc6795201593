"""Conversion of the return values of `run` to `Rows`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import DefinitionError, StepOutputError, did_you_mean
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.origin import INPUT, Every, Origin, Piece, Several, Stated
from datadreamer_like.graph.output import OutputDatasetMixin, OutputIterableDataset, rows_of_iterable
from datadreamer_like.graph.rows import BATCH_SIZE, Batch, Rows, rebatched
from datadreamer_like.storage.schemas import widened
from datadreamer_like.storage.values import to_batch

from ..operations.transforms import join_columns
from .lazy_rows import From, LazyRowBatches, LazyRows, RowsFrom, Traced, Values

# Slow rows are passed on this often, so that progress is visible and saved; fast ones in full batches.
_FLUSH_SECONDS = 0.5

_ANY_SIZE = 2**62


@dataclass(frozen=True)
class Expected:
    """The outputs that a step's rows must match.

    Attributes:
        outputs: Names of the registered outputs, in order.
        what: The step, for messages.
        inputs: The nodes of the step's inputs, by input name.
        like: Schema of columns whose types are known; see `LazyRows`.
    """

    outputs: list[str]
    what: str
    inputs: Mapping[str, Node]
    like: pa.Schema | None = None

    def stated(self, sources: Iterable[From]) -> Stated:
        """Returns the origin of rows, by node and role.

        Raises:
            DefinitionError: A source is not an input, a column or a node.
        """
        stated: dict[tuple[Node, str], Piece | None] = {}
        for given in sources:
            source = self.inputs.get(given.source) if isinstance(given.source, str) else given.source
            node = source.step if isinstance(source, OutputDatasetMixin) else source
            if not isinstance(node, Node):
                raise DefinitionError(
                    f"{self.what}: From({given.source!r}) is not a column, a step or one of its inputs "
                    f"({', '.join(self.inputs) or 'none'}).{did_you_mean(str(given.source), self.inputs)}"
                )
            stated[node, given.role] = _piece(given.rows)
        return stated

    def same_rows(self) -> Stated:
        """Returns the origin of rows that came from the inputs' rows at the same positions."""
        return {(node, INPUT): None for node in self.inputs.values()}


def _piece(rows: RowsFrom | None) -> Piece | None:
    if rows is None or isinstance(rows, range | Every):
        return rows
    if isinstance(rows, np.ndarray):
        return rows.astype(np.int64)
    if any(isinstance(row, Sequence | np.ndarray) for row in rows):
        return Several.of(rows)  # type: ignore[arg-type]
    return np.array([-1 if row is None else row for row in rows], dtype=np.int64)


def normalized(value: Any, expected: Expected) -> tuple[Rows, bool]:
    """Converts a return value of `run` to rows.

    Args:
        value: The return value.
        expected: The outputs that it must match.

    Returns:
        The rows, and whether they stay lazy.

    Raises:
        StepOutputError: The value does not match the outputs.
    """
    if isinstance(value, Traced):
        rows, lazy = normalized(value.value, expected)
        stated = expected.stated(value.sources)
        links = tuple(link for key, piece in stated.items() for link in _origin(key, piece).links or ())
        return replace(rows, origin=Origin(links)), lazy
    if isinstance(value, LazyRows | LazyRowBatches):
        return _of_lazy(value, expected)
    if isinstance(value, Rows):
        return _fitted(value, expected), value.table is None
    if isinstance(value, OutputDatasetMixin):
        return _fitted(value.rows, expected), isinstance(value, OutputIterableDataset)
    if is_hf(value, "IterableDataset"):
        raise StepOutputError(f"{expected.what}: run() returned an IterableDataset. Return LazyRows(dataset) instead.")
    if is_hf(value, "DatasetDict") or is_hf(value, "IterableDatasetDict"):
        raise StepOutputError(
            f"{expected.what}: run() returned several splits ({', '.join(value)}). Return one dataset."
        )
    if is_hf(value, "Dataset"):
        return _fitted(Rows.of_dataset(value), expected), False
    if isinstance(value, list | tuple) and value and all(_is_dataset(item) for item in value):
        return _side_by_side(list(value), expected)
    if isinstance(value, Mapping):
        return _of_columns(value, expected)
    return _of_values(value, expected), False


def _origin(key: tuple[Node, str], piece: Piece | None) -> Origin:
    origin = Origin.same(key[0]) if piece is None else Origin.at(key[0], piece)
    return Origin(tuple(replace(link, role=key[1]) for link in origin.links or ()))


def _of_lazy(value: LazyRows | LazyRowBatches, expected: Expected) -> tuple[Rows, bool]:
    expected = replace(expected, like=value.like)
    default = expected.same_rows() if value.row_by_row else None
    given = value.value
    if is_hf(given, "IterableDataset"):
        rows = _fitted(rows_of_iterable(given), expected)
        return replace(rows, num_rows=value.total_num_rows), value.stays_lazy
    if isinstance(given, OutputDatasetMixin):
        rows = _fitted(given.rows, expected)
        total = given.num_rows if value.total_num_rows is None else value.total_num_rows
        return replace(rows, num_rows=total), value.stays_lazy and isinstance(given, OutputIterableDataset)
    read = _row_batches(given, expected) if isinstance(value, LazyRows) else _batches(given, expected, default)

    def checked() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        schema: pa.Schema | None = None
        for batch, stated in read():
            # Incompatible types are rejected as soon as they are read.
            if schema is None:
                schema = batch.schema
            elif not batch.schema.equals(schema, check_metadata=True):
                schema = widened(schema, batch.schema, expected.what)
            yield batch, default if stated is None else stated

    total = None if value.total_num_rows is None else max(0, value.total_num_rows)
    return Rows.recorded(_schema(expected), total, checked), value.stays_lazy


def _schema(expected: Expected) -> pa.Schema:
    """Returns the outputs' schema as far as it is known before rows are read; null where it is not."""
    like = expected.like
    known = {} if like is None else {name: like.field(name) for name in expected.outputs if name in like.names}
    return pa.schema([known.get(name, pa.field(name, pa.null())) for name in expected.outputs])


def _fitted(rows: Rows, expected: Expected) -> Rows:
    """Returns another step's rows, or a dataset's, under the names of the outputs."""
    if len(rows.columns) == len(expected.outputs) == 1:
        fitted = rows.renamed({rows.columns[0]: expected.outputs[0]})  # a single column may have any name
    elif set(rows.columns) != set(expected.outputs):
        raise _wrong_columns(rows.columns, expected)
    else:
        fitted = rows if rows.columns == expected.outputs else rows.select_columns(expected.outputs)
    return replace(fitted, origin=Origin.same(rows.node) if rows.node is not None else Origin(None))


def _of_values(value: Any, expected: Expected) -> Rows:
    if value is None:
        return _of_list([], expected)
    if isinstance(value, tuple | list):
        if len(expected.outputs) > 1 and _are_columns(value, expected.outputs):
            return _of_columns(dict(zip(expected.outputs, map(list, value), strict=True)), expected)[0]
        return _of_list(value, expected)
    if isinstance(value, Iterator | range):
        return Rows.recorded(expected.outputs, None, _row_batches(value, expected))
    return _of_list([value], expected)


def _of_list(rows: list[Any] | tuple[Any, ...], expected: Expected) -> Rows:
    made = Rows.recorded(expected.outputs, len(rows), _row_batches(lambda: iter(rows), expected))
    return made if rows else replace(made, origin=Origin())


def _are_columns(value: list[Any] | tuple[Any, ...], outputs: list[str]) -> bool:
    """Whether a value holds columns, not rows: as many lists as outputs, equally long, and not readable as rows."""
    if len(value) != len(outputs) or not all(isinstance(column, list | tuple) for column in value):
        return False
    if isinstance(value, tuple):
        return len({len(column) for column in value}) == 1
    readable_as_rows = all(len(row) == len(outputs) for row in value)
    return not readable_as_rows and len({len(column) for column in value}) == 1


def _of_columns(value: Mapping[str, Any], expected: Expected) -> tuple[Rows, bool]:
    if set(value) != set(expected.outputs):
        raise _wrong_columns(list(value), expected)
    if all(_is_dataset(column) for column in value.values()):
        return _side_by_side([value[name] for name in expected.outputs], expected)
    columns: Batch = {}
    for name in expected.outputs:
        column = value[name]
        if isinstance(column, str | bytes) or not isinstance(column, Iterable):
            # One row, given as a dictionary of its values.
            columns[name] = [column]
        else:
            columns[name] = list(column)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise StepOutputError(f"{expected.what}: run() returned columns of different lengths: {lengths}.")
    size = next(iter(lengths.values()), 0)

    def batches() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        for start in range(0, size, BATCH_SIZE):
            part = {name: column[start : start + BATCH_SIZE] for name, column in columns.items()}
            yield to_batch(part, expected.what, expected.like), None

    return Rows.recorded(expected.outputs, size, batches), False


def _row_batches(value: Values, expected: Expected) -> Callable[[], Iterator[tuple[pa.RecordBatch, Stated | None]]]:
    def batches() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        for portion in _in_portions(value() if callable(value) else value):
            yield to_batch(rows_to_batch(portion, expected.outputs, expected.what), expected.what, expected.like), None

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


def _batches(
    value: Values, expected: Expected, default: Stated | None
) -> Callable[[], Iterator[tuple[pa.RecordBatch, Stated | None]]]:
    names = set(expected.outputs)

    def batches() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        for given in value() if callable(value) else value:
            batch, stated = given, default
            if isinstance(given, Traced):
                batch, stated = given.value, expected.stated(given.sources)
            if isinstance(batch, pa.RecordBatch):
                if set(batch.schema.names) != names:
                    raise _wrong_columns(batch.schema.names, expected)
                yield batch.select(expected.outputs), stated
                continue
            # A batch is read as a whole: its stated origin holds for all of its rows.
            rows, _ = normalized(batch, expected)
            for part in rebatched(rows.read(), _ANY_SIZE):
                yield part, stated

    return batches


def rows_to_batch(rows: list[Any], outputs: list[str], what: str) -> Batch:
    """Converts rows of any allowed form to columns.

    Raises:
        StepOutputError: A row does not match the outputs.
    """
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
    return dict(zip(outputs, (list(column) for column in zip(*rows, strict=True)), strict=True))


def _side_by_side(datasets: list[Any], expected: Expected) -> tuple[Rows, bool]:
    parts = [part.rows if isinstance(part, OutputDatasetMixin) else Rows.of_dataset(part) for part in datasets]
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


def _wrong_columns(found: list[str], expected: Expected) -> StepOutputError:
    return StepOutputError(
        f"{expected.what}: run() returned the columns {', '.join(map(str, found))}; expected "
        f"{', '.join(expected.outputs)}."
    )


def _is_dataset(value: Any) -> TypeGuard[Any]:
    return isinstance(value, OutputDatasetMixin) or is_hf(value, "Dataset")


def is_hf(value: Any, name: str) -> bool:
    """Returns whether a value is an instance of a class of `datasets`, without importing it."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "datasets" for base in type(value).__mro__
    )
