"""Functions from `Rows` to `Rows` behind the operations; they move Arrow data without making Python values."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datadreamer_like.errors import DefinitionError, StepOutputError
from datadreamer_like.graph.origin import INPUT, Origin, Recorder, Stated
from datadreamer_like.graph.rows import BATCH_SIZE, Rows, Table, rebatched
from datadreamer_like.storage.schemas import cast, widened
from datadreamer_like.storage.tables import TableWriter, read_table
from datadreamer_like.storage.values import FEATURE, class_names, to_batch

Positions = np.ndarray[Any, Any]


def same_rows(rows: Rows) -> Rows:
    """Returns the same rows, as rows of another step."""
    return replace(rows, origin=_same(rows))


def select(rows: Rows, indices: Sequence[int] | range | Positions) -> Rows:
    """Selects rows by position, in the given order."""
    positions = indices if isinstance(indices, range) else np.asarray(indices, dtype=np.int64)
    ends = np.array([positions[0], positions[-1]]) if isinstance(positions, range) and positions else positions
    least, most = (int(np.min(ends)), int(np.max(ends))) if len(positions) else (0, -1)
    if rows.table is None:
        if least < 0:
            raise DefinitionError("select: lazy rows have no negative positions. Use save() first.")
        return _select_lazy(rows, np.asarray(positions, dtype=np.int64), most)
    size = len(rows.table)
    if least < -size or most >= size:
        raise DefinitionError(f"select: there is no row {least if least < -size else most}; there are {size}.")
    if least < 0:
        positions = np.asarray(positions)
        positions = np.where(positions < 0, positions + size, positions)
    return _of_table(rows, positions)


def _of_table(rows: Rows, positions: range | Positions) -> Rows:
    assert rows.table is not None
    return Rows.of_table(rows.table.select(positions), Origin.at(rows.node, positions))


def _select_lazy(rows: Rows, positions: Positions, last: int) -> Rows:
    in_order = bool((np.diff(positions) > 0).all())

    def chosen() -> Iterator[pa.RecordBatch]:
        wanted = positions if in_order else np.unique(positions)
        start = 0
        for batch in rows.read():
            stop = start + batch.num_rows
            places = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            if len(places):
                yield batch.take(pa.array(places))
            start = stop
            if stop > last:
                return
        missing = positions[positions >= start]
        if len(missing):
            raise DefinitionError(f"select: there is no row {missing[0]}; there are {start}.")

    def read() -> Iterator[pa.RecordBatch]:
        if in_order:
            yield from chosen()
            return
        chosen_rows = materialized(replace(rows, read=chosen))
        assert chosen_rows.table is not None
        order = np.searchsorted(np.unique(positions), positions)
        yield from chosen_rows.table.select(order).batches()

    return replace(rows, num_rows=len(positions), read=read, origin=Origin.at(rows.node, positions))


def keep_columns(rows: Rows, names: Sequence[str]) -> Rows:
    """Keeps the named columns, in that order."""
    return same_rows(rows.select_columns(names))


def rename(rows: Rows, names: Mapping[str, str]) -> Rows:
    """Renames columns."""
    return same_rows(rows.renamed(dict(names)))


def span(rows: Rows, start: int, count: int | None) -> Rows:
    """Selects `count` rows from position `start`; all remaining rows if `count` is None."""
    if start < 0 or (count is not None and count < 0):
        raise DefinitionError("take and skip need a number of rows of 0 or more.")
    total = rows.num_rows
    size = None if total is None else max(0, total - start)
    if count is not None:
        size = count if size is None else min(size, count)
    if rows.table is not None:
        assert size is not None
        return _of_table(rows, range(start, start + size))

    def read() -> Iterator[pa.RecordBatch]:
        stop = None if count is None else start + count
        if stop == start:
            return
        place = 0
        for batch in rows.read():
            first = max(0, start - place)
            last = batch.num_rows if stop is None else min(batch.num_rows, stop - place)
            if first < last:
                yield batch.slice(first, last - first)
            place += batch.num_rows
            if stop is not None and place >= stop:
                return

    known = None if total is None else size
    taken = range(start, start + size) if size is not None else range(start, 2**62)
    return replace(rows, num_rows=known, read=read, origin=Origin.at(rows.node, taken))


def shuffle(rows: Rows, seed: int, buffer_size: int) -> Rows:
    """Puts rows in random order: a table as a whole, lazy rows within a buffer."""
    if rows.table is not None:
        return _of_table(rows, np.random.default_rng(seed).permutation(len(rows.table)))

    def read() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        rng = random.Random(seed)
        pool: pa.RecordBatch | None = None
        places: list[int] = []
        start = 0
        for batch in rebatched(rows.read(), max(1, buffer_size)):
            known = [*places, *range(start, start + batch.num_rows)]
            start += batch.num_rows
            both = batch if pool is None else _together([pool, batch])
            if both.num_rows <= buffer_size:
                pool, places = both, known
                continue
            # All but `buffer_size` random rows are passed on; the others stay in the buffer.
            order = list(range(both.num_rows))
            rng.shuffle(order)
            out, stay = order[buffer_size:], order[:buffer_size]
            yield both.take(pa.array(out)), _stated(rows, np.array([known[index] for index in out]))
            pool, places = both.take(pa.array(stay)), [known[index] for index in stay]
        if pool is not None:
            order = list(range(pool.num_rows))
            rng.shuffle(order)
            yield pool.take(pa.array(order)), _stated(rows, np.array([places[index] for index in order]))

    return Rows.recorded(rows.schema, rows.num_rows, read)


def reverse(rows: Rows) -> Rows:
    """Reverses the order of the rows."""
    if rows.table is not None:
        return _of_table(rows, range(len(rows.table) - 1, -1, -1))

    def read() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        table = materialized(rows).table
        assert table is not None
        backwards = range(len(table) - 1, -1, -1)
        place = 0
        for batch in table.select(backwards).batches():
            yield batch, _stated(rows, backwards[place : place + batch.num_rows])
            place += batch.num_rows

    return Rows.recorded(rows.schema, rows.num_rows, read)


def append(rows: Rows, item: dict[str, Any]) -> Rows:
    """Appends a row; missing columns are None."""
    values = {name: [item.get(name)] for name in rows.columns}
    if rows.table is not None:
        last = to_batch(values, "add_item", rows.schema)
        schema = widened(rows.schema, last.schema, "add_item")
        data = pa.concat_tables([_cast_table(rows.table.whole(), schema), pa.Table.from_batches([cast(last, schema)])])
        size = len(rows.table)
        return Rows.of_table(data, Origin.at(rows.node, np.append(np.arange(size), -1)))

    def read() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        place, schema = 0, rows.schema
        for batch in rows.read():
            yield batch, _stated(rows, range(place, place + batch.num_rows))
            place += batch.num_rows
            schema = batch.schema
        yield to_batch(values, "add_item", schema), {}

    return Rows.recorded(rows.schema, None if rows.num_rows is None else rows.num_rows + 1, read)


def shard(rows: Rows, num_shards: int, index: int, contiguous: bool) -> Rows:
    """Selects one of several parts."""
    total = rows.num_rows
    if contiguous:
        if total is None:
            raise DefinitionError("shard: contiguous=True needs a known number of rows. Use save() first.")
        size, extra = divmod(total, num_shards)
        return span(rows, index * size + min(index, extra), size + (index < extra))
    if rows.table is not None:
        return _of_table(rows, range(index, len(rows.table), num_shards))

    def read() -> Iterator[pa.RecordBatch]:
        place = 0
        for batch in rows.read():
            first = (index - place) % num_shards
            if first < batch.num_rows:
                yield batch.take(pa.array(range(first, batch.num_rows, num_shards)))
            place += batch.num_rows

    known = None if total is None else len(range(index, total, num_shards))
    return replace(rows, num_rows=known, read=read, origin=Origin.at(rows.node, range(index, 2**62, num_shards)))


def concatenated(parts: Sequence[Rows]) -> Rows:
    """Concatenates rows; class labels are aligned by class name."""
    names = parts[0].columns
    parts = _aligned([replace(part.select_columns(names), origin=part.origin) for part in parts], names)
    if all(part.table is not None for part in parts):
        tables = [part.table.whole() for part in parts if part.table is not None]
        schema = tables[0].schema
        for table in tables[1:]:
            schema = widened(schema, table.schema, "concat")
        starts = np.cumsum([0, *(table.num_rows for table in tables)])
        made = Rows.of_table(pa.concat_tables([_cast_table(table, schema) for table in tables]))
        return replace(made, origin=_concatenated_origin(parts, starts.tolist()))

    def read() -> Iterator[tuple[pa.RecordBatch, Stated | None]]:
        for part in parts:
            place = 0
            for batch in part.read():
                yield batch, _stated(part, range(place, place + batch.num_rows))
                place += batch.num_rows

    sizes = [part.num_rows for part in parts if part.num_rows is not None]
    return Rows.recorded(parts[0].schema, sum(sizes) if len(sizes) == len(parts) else None, read)


def _concatenated_origin(parts: Sequence[Rows], starts: list[int]) -> Origin:
    origin = Origin.learned()
    recorder = Recorder(origin)
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        recorder.add(stop - start, _stated(part, range(stop - start)))
    return Origin(origin.links if starts[-1] else ())


def _aligned(parts: list[Rows], names: Sequence[str]) -> list[Rows]:
    """Aligns class label columns to one list of names, the union of all lists."""
    for name in names:
        listed = [class_names(part.schema.field(name)) for part in parts]
        union = list(dict.fromkeys(class_name for names in listed for class_name in names or ()))
        if all(listed) and any(names != union for names in listed):
            parts = [_renumbered(part, name, names or [], union) for part, names in zip(parts, listed, strict=True)]
    return parts


def _renumbered(rows: Rows, name: str, old: list[str], union: list[str]) -> Rows:
    numbers = pa.array([union.index(class_name) for class_name in old], pa.int64())
    feature = json.dumps({"_type": "ClassLabel", "names": union}, sort_keys=True).encode()

    def changed(batch: pa.RecordBatch) -> pa.RecordBatch:
        index = batch.schema.get_field_index(name)
        column = batch.column(index)
        known = pa.array(np.asarray(column.fill_null(-1)) >= 0)
        new = numbers.take(pc.if_else(known, column, None))
        new = pc.if_else(known, new, column)  # -1 means no class
        field = pa.field(name, pa.int64(), metadata={**(batch.schema.field(index).metadata or {}), FEATURE: feature})
        return batch.set_column(index, field, new)

    schema = pa.schema(
        pa.field(name, pa.int64(), metadata={FEATURE: feature}) if column.name == name else column
        for column in rows.schema
    )
    if rows.table is not None:
        batches = [changed(batch) for batch in rows.table.batches()]
        made = Rows.of_table(pa.Table.from_batches(batches, schema))
        return replace(made, origin=rows.origin, node=rows.node)
    return replace(rows, schema=schema, read=lambda: map(changed, rows.read()))


def side_by_side(parts: Sequence[Rows]) -> Rows:
    """Joins the columns of several rows, with their origin."""

    def differ(index: int, count: int) -> None:
        node = parts[index].node
        name = node.name if node is not None else "one"
        raise StepOutputError(f'zipped: the steps have different numbers of rows: "{name}" ends after {count}.')

    origin = Origin.same(*(part.node for part in parts if part.node is not None))
    return replace(join_columns(parts, differ), origin=origin)


def number_columns(rows: Rows, index: int) -> Rows:
    """Renames columns to numbers, so that columns of the same name can be joined."""
    return rows.renamed({name: f"{index}.{place}" for place, name in enumerate(rows.columns)})


def join_columns(parts: Sequence[Rows], differ: Callable[[int, int], None] | None = None) -> Rows:
    """Joins the columns of several rows, row by row.

    Args:
        parts: The rows; their columns have different names.
        differ: Called, if the numbers of rows differ, with the index of the shortest part and its number of rows.
    """
    schema = pa.schema([column for part in parts for column in part.schema])
    if all(part.table is not None for part in parts) and len({part.num_rows for part in parts}) == 1:
        tables = [part.table.whole() for part in parts if part.table is not None]
        columns = [column for table in tables for column in table.columns]
        return Rows.of_table(Table(pa.Table.from_arrays(columns, schema=schema)))

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
            if max(sizes) > size:
                if differ is not None:
                    differ(sizes.index(size), count)
                return
            if size < BATCH_SIZE:
                return

    known = [part.num_rows for part in parts if part.num_rows is not None]
    return Rows(schema, known[0] if known else None, read, Origin.same(*(part.node for part in parts if part.node)))


def materialized(rows: Rows, what: str = "rows") -> Rows:
    """Writes lazy rows to a table in a temporary folder, which is deleted when the process ends."""
    if rows.table is not None:
        return rows
    folder = Path(tempfile.mkdtemp(prefix="datadreamer_like-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    writer = TableWriter(folder, what=what, schema=rows.schema)
    for batch in rows.read():
        writer.write(batch)
    writer.close(folder.name)
    return replace(Rows.of_table(read_table(folder)), origin=rows.origin, node=rows.node)


def _same(rows: Rows) -> Origin:
    return Origin.same(rows.node) if rows.node is not None else Origin()


def _stated(rows: Rows, piece: range | Positions) -> Stated:
    return {(rows.node, INPUT): piece} if rows.node is not None else {}


def _cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema, check_metadata=True):
        return table
    return pa.Table.from_batches([cast(batch, schema) for batch in table.to_batches()], schema)


def _together(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (joined,) = rebatched(batches, 2**62)
    return joined
