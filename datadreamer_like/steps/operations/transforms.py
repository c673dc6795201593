"""Functions from `Rows` to `Rows` behind the operations; they move Arrow data without making Python values."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datadreamer_like.errors import DefinitionError, StepOutputError
from datadreamer_like.graph.lazy_table import materialized
from datadreamer_like.graph.origin import INPUT, Origin, Piece, Recorder, Stated
from datadreamer_like.graph.rows import BATCH_SIZE, Rows, Table, rebatched, with_columns
from datadreamer_like.storage.schemas import cast, widened
from datadreamer_like.storage.values import FEATURE, class_names, to_batch

Positions = np.ndarray[Any, Any]

StatedBatches = Iterator[tuple[pa.RecordBatch, Stated | None]]
"""Batches, each with the origin of its rows."""


def same_rows(rows: Rows) -> Rows:
    """Returns the same rows, as rows of another step."""
    return replace(rows, origin=Origin.same(rows.node) if rows.node is not None else Origin())


def select(rows: Rows, indices: Sequence[int] | Positions) -> Rows:
    """Selects rows by position, in the given order."""
    positions = np.asarray(indices, dtype=np.int64)
    least, most = (positions.min(), positions.max()) if len(positions) else (0, -1)
    if rows.table is None:
        if least < 0:
            raise DefinitionError("select: lazy rows have no negative positions. Use save() first.")
        return _select_lazy(rows, positions, most)
    size = len(rows.table)
    if least < -size or most >= size:
        raise DefinitionError(f"select: there is no row {least if least < -size else most}; there are {size}.")
    return _of_table(rows, np.where(positions < 0, positions + size, positions) if least < 0 else positions)


def _of_table(rows: Rows, positions: range | Positions) -> Rows:
    return Rows.of_table(table_of(rows).select(positions), Origin.at(rows.node, positions))


def _select_lazy(rows: Rows, positions: Positions, last: int) -> Rows:
    wanted = np.unique(positions)

    def in_order() -> Iterator[pa.RecordBatch]:
        stop = 0
        for start, batch in placed(rows.read()):
            stop = start + batch.num_rows
            places = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            if len(places):
                yield batch.take(pa.array(places))
            if stop > last:
                return
        if stop <= last:
            raise DefinitionError(f"select: there is no row {positions[positions >= stop][0]}; there are {stop}.")

    def read() -> Iterator[pa.RecordBatch]:
        chosen = table_of(replace(rows, read=in_order))
        yield from chosen.select(np.searchsorted(wanted, positions)).batches()

    is_in_order = np.array_equal(wanted, positions)
    origin = Origin.at(rows.node, positions)
    return replace(rows, num_rows=len(positions), read=in_order if is_in_order else read, origin=origin)


def keep_columns(rows: Rows, column_names: Sequence[str]) -> Rows:
    """Keeps the named columns, in that order."""
    return same_rows(rows.select_columns(column_names))


def rename(rows: Rows, names: Mapping[str, str]) -> Rows:
    """Renames columns."""
    return same_rows(rows.renamed(dict(names)))


def span(rows: Rows, start: int, stop: int | None) -> Rows:
    """Selects the rows from position `start` to before `stop`; to the end if `stop` is None."""
    if start < 0 or (stop is not None and stop < 0):
        raise DefinitionError("take and skip need a number of rows of 0 or more.")
    total = rows.num_rows
    end = min(end for end in (stop, total, 2**62) if end is not None)
    taken = range(start, max(start, end))
    if rows.table is not None:
        return _of_table(rows, taken)

    def read() -> Iterator[pa.RecordBatch]:
        if stop == 0:
            return
        for place, batch in placed(rows.read()):
            first = max(0, start - place)
            last = batch.num_rows if stop is None else min(batch.num_rows, stop - place)
            if first < last:
                yield batch.slice(first, last - first)
            if stop is not None and place + batch.num_rows >= stop:
                return

    return replace(rows, num_rows=None if total is None else len(taken), read=read, origin=Origin.at(rows.node, taken))


def shuffle(rows: Rows, seed: int | None, buffer_size: int) -> Rows:
    """Puts rows in random order: a table as a whole, lazy rows within a buffer."""
    if rows.table is not None:
        return _of_table(rows, np.random.default_rng(seed or 0).permutation(len(rows.table)))

    def read() -> StatedBatches:
        rng = random.Random(seed or 0)
        held: list[pa.RecordBatch] = []
        positions = np.arange(0)
        for start, batch in chain(placed(rebatched(rows.read(), max(1, buffer_size))), [(0, None)]):
            stay = 0 if batch is None else buffer_size
            if batch is not None:
                held.append(batch)
                positions = np.append(positions, range(start, start + batch.num_rows))
            if len(positions) > stay:
                # All but `stay` random rows are passed on; the others stay in the buffer.
                order = list(range(len(positions)))
                rng.shuffle(order)
                out, left = np.array(order[stay:]), np.array(order[:stay], dtype=np.int64)
                (both,) = rebatched(held, 2**62)
                yield both.take(pa.array(out)), stated(rows, positions[out])
                held, positions = [both.take(pa.array(left))], positions[left]

    return Rows.recorded(rows.schema, rows.num_rows, read)


def reverse(rows: Rows) -> Rows:
    """Reverses the order of the rows."""
    if rows.table is not None:
        return _of_table(rows, range(len(rows.table) - 1, -1, -1))

    def read() -> StatedBatches:
        table = table_of(rows)
        backwards = range(len(table) - 1, -1, -1)
        for place, batch in placed(table.select(backwards).batches()):
            yield batch, stated(rows, backwards[place : place + batch.num_rows])

    return Rows.recorded(rows.schema, rows.num_rows, read)


def append(rows: Rows, item: dict[str, Any]) -> Rows:
    """Appends a row; missing columns are None."""
    last = to_batch({name: [item.get(name)] for name in rows.columns}, "add_item", rows.schema)
    return concatenated(rows, Rows.of_table(pa.Table.from_batches([last])), what="add_item")


def shard(rows: Rows, num_shards: int, index: int, contiguous: bool) -> Rows:
    """Selects one of several parts; for contiguous ones, lazy rows are written to a temporary table first."""
    if contiguous:
        whole = materialized(rows)
        size, extra = divmod(whole.num_rows or 0, num_shards)
        start = index * size + min(index, extra)
        return _of_table(whole, range(start, start + size + (index < extra)))
    if rows.table is not None:
        return _of_table(rows, range(index, len(rows.table), num_shards))

    def read() -> StatedBatches:
        for place, batch in placed(rows.read()):
            chosen = range((index - place) % num_shards, batch.num_rows, num_shards)
            taken = range(place + chosen.start, place + batch.num_rows, num_shards)
            yield batch.take(pa.array(chosen, pa.int64())), stated(rows, taken)

    return Rows.recorded(rows.schema, rows.num_rows and len(range(index, rows.num_rows, num_shards)), read)


def concatenated(*parts: Rows, what: str = "concat") -> Rows:
    """Concatenates rows of the union of their columns; class labels are aligned by class name."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    aligned = _aligned([_with_columns(part, names) for part in parts], names)
    schema = aligned[0].schema
    for part in aligned[1:]:  # lazy rows have columns of unknown types, which fit any
        schema = widened(schema, part.schema, what)
    tables = [part.table.whole() for part in aligned if part.table is not None]
    if len(tables) == len(aligned):
        origin = Origin.learned()
        recorder = Recorder(origin)
        for part, table in zip(aligned, tables, strict=True):
            recorder.add(table.num_rows, stated(part, range(table.num_rows)))
        data = pa.concat_tables([_cast_table(table, schema, what) for table in tables])
        return Rows.of_table(data, Origin(origin.links or ()))

    def read() -> StatedBatches:
        known = schema
        for part in aligned:
            for place, batch in placed(part.read()):
                if not batch.schema.equals(known, check_metadata=True):
                    known = widened(known, batch.schema, what)
                yield batch, stated(part, range(place, place + batch.num_rows))

    sizes = [part.num_rows for part in aligned if part.num_rows is not None]
    return Rows.recorded(schema, sum(sizes) if len(sizes) == len(aligned) else None, read)


def _with_columns(rows: Rows, names: list[str]) -> Rows:
    """Returns rows with all named columns, in that order; columns that they do not have are None."""
    if rows.columns == names:
        return rows
    known = {field.name: field for field in rows.schema}
    schema = pa.schema([known.get(name, pa.field(name, pa.null())) for name in names])
    if rows.table is None:
        return replace(rows, schema=schema, read=lambda: (with_columns(batch, schema) for batch in rows.read()))
    data = rows.table.data
    columns = [data.column(name) if name in known else pa.nulls(data.num_rows) for name in names]
    table = Table(pa.Table.from_arrays(columns, schema=schema), rows.table.indices)
    return Rows.of_table(table, rows.origin, rows.node)


def _aligned(parts: list[Rows], columns: list[str]) -> list[Rows]:
    """Aligns class label columns to one list of names, the union of all lists."""
    for name in columns:
        fields = [part.schema.field(name) for part in parts]
        listed = {index: class_names(field) for index, field in enumerate(fields) if not pa.types.is_null(field.type)}
        union = list(dict.fromkeys(chain(*(names or [] for names in listed.values()))))
        if all(listed.values()) and any(names != union for names in listed.values()):
            parts = [
                _renumbered(part, name, listed[index] or [], union) if index in listed else part
                for index, part in enumerate(parts)
            ]
    return parts


def _renumbered(rows: Rows, name: str, old: list[str], union: list[str]) -> Rows:
    numbers = pa.array([*map(union.index, old), -1])  # -1 means no class
    feature = json.dumps({"_type": "ClassLabel", "names": union}, sort_keys=True).encode()

    def changed(batch: pa.RecordBatch) -> pa.RecordBatch:
        index = batch.schema.get_field_index(name)
        column = batch.column(index)
        new = numbers.take(pc.if_else(pc.greater_equal(column, 0), column, len(old)))
        field = pa.field(name, pa.int64(), metadata={**(batch.schema.field(index).metadata or {}), FEATURE: feature})
        return batch.set_column(index, field, new)

    field = pa.field(name, pa.int64(), metadata={FEATURE: feature})
    schema = pa.schema(field if column.name == name else column for column in rows.schema)
    if rows.table is not None:
        table = pa.Table.from_batches(map(changed, rows.table.batches()), schema)
        return Rows.of_table(table, rows.origin, rows.node)
    return replace(rows, schema=schema, read=lambda: map(changed, rows.read()))


def side_by_side(*parts: Rows) -> Rows:
    """Joins the columns of the rows of several steps, with their origin."""
    message = 'zipped: the steps have different numbers of rows: "{}" ends after {}.'
    return join_columns(parts, lambda node, count: StepOutputError(message.format(node.name, count)))


def join_columns(parts: Sequence[Rows], differ: Callable[[Any, int], Exception] | None = None) -> Rows:
    """Joins the columns of several rows, with different names, row by row.

    If the numbers of rows differ, the error that `differ` makes of the shortest part's node and length is raised.
    """
    schema = pa.schema([column for part in parts for column in part.schema])
    origin = Origin.same(*(part.node for part in parts if part.node is not None))
    if all(part.table is not None for part in parts) and len({part.num_rows for part in parts}) == 1:
        tables = [part.table.whole() for part in parts if part.table is not None]
        columns = [column for table in tables for column in table.columns]
        return Rows.of_table(pa.Table.from_arrays(columns, schema=schema), origin)

    def read() -> Iterator[pa.RecordBatch]:
        passes = [rebatched(part.read(), BATCH_SIZE) for part in parts]
        count = 0
        while True:
            batches = [next(one, None) for one in passes]
            sizes = [0 if batch is None else batch.num_rows for batch in batches]
            size = min(sizes)
            if size:
                taken = [batch.slice(0, size) for batch in batches if batch is not None]
                fields = [column for batch in taken for column in batch.schema]
                yield pa.RecordBatch.from_arrays(
                    [column for batch in taken for column in batch.columns], schema=pa.schema(fields)
                )
            count += size
            if max(sizes) > size and differ is not None:
                raise differ(parts[sizes.index(size)].node, count)
            if size < BATCH_SIZE:
                return

    return Rows(schema, next((part.num_rows for part in parts if part.num_rows is not None), None), read, origin)


def table_of(rows: Rows) -> Table:
    """Returns the table of rows; that of lazy rows is temporary, see `materialized`."""
    table = materialized(rows).table
    assert table is not None
    return table


def placed(batches: Iterable[pa.RecordBatch], position: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields batches, each with the position of its first row; that of the first one is given."""
    for batch in batches:
        yield position, batch
        position += batch.num_rows


def stated(rows: Rows, piece: Piece) -> Stated:
    """Returns the origin of a batch that comes from a piece of some rows."""
    return {(rows.node, INPUT): piece} if rows.node is not None else {}


def _cast_table(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    if table.schema.equals(schema, check_metadata=True):
        return table
    return pa.Table.from_batches([cast(batch, schema, what) for batch in table.to_batches()], schema)
