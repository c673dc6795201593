"""What operations do to rows: functions from one table to another. A table on disk stays one where rows only move."""

from __future__ import annotations

import atexit
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from datadreamer_like.errors import DefinitionError, StepOutputError
from datadreamer_like.graph.output import BATCH_SIZE, Batch, OutputDataset, OutputIterableDataset, RowSource
from datadreamer_like.storage.tables import TableWriter, open_table

if TYPE_CHECKING:
    from datasets import Dataset

Table = OutputDataset | OutputIterableDataset | RowSource


def is_table(rows: Table) -> TypeGuard[OutputDataset]:
    """Tells whether the rows are on disk, so that they can be taken by position."""
    return isinstance(rows, OutputDataset)


def columns_of(rows: Table) -> list[str]:
    """Returns the names of the columns."""
    return list(rows.columns) if isinstance(rows, RowSource) else rows.column_names


def select(rows: Table, indices: list[int]) -> Table:
    """Takes rows by position."""
    if is_table(rows):
        size = rows.num_rows
        outside = [index for index in indices if not -size <= index < size]
        if outside:
            raise DefinitionError(f"select: there is no row {outside[0]}; there are {size}.")
        return _view(rows, rows.dataset.select([index % size for index in indices]))
    if any(index < 0 for index in indices):
        raise DefinitionError("select: rows made when they are asked for have no last one. Use save() first.")

    def batches() -> Iterator[Batch]:
        # The wanted rows are held, the others pass by.
        wanted = set(indices)
        held: dict[int, tuple[Any, ...]] = {}
        last = max(indices, default=-1)
        for position, row in enumerate(row_tuples(rows)):
            if position in wanted:
                held[position] = row
            if position >= last:
                break
        missing = [index for index in indices if index not in held]
        if missing:
            raise DefinitionError(f"select: there is no row {missing[0]}.")
        yield from _portions((held[index] for index in indices), columns_of(rows))

    return source_like(rows, batches, len(indices))


def keep_columns(rows: Table, names: list[str]) -> Table:
    """Keeps the named columns, in that order."""
    if is_table(rows):
        return _view(rows, rows.dataset.select_columns(names))

    def batches() -> Iterator[Batch]:
        for batch in rows.batches():
            yield {name: batch[name] for name in names}

    return source_like(rows, batches, rows.num_rows, names)


def rename(rows: Table, names: Mapping[str, str]) -> Table:
    """Gives columns other names."""
    if is_table(rows):
        return _view(rows, rows.dataset.rename_columns(dict(names)))

    def batches() -> Iterator[Batch]:
        for batch in rows.batches():
            yield {names.get(name, name): values for name, values in batch.items()}

    return source_like(rows, batches, rows.num_rows, [names.get(name, name) for name in columns_of(rows)])


def span(rows: Table, start: int, count: int | None) -> Table:
    """Takes `count` rows from position `start` on; all the rest if that is None."""
    if start < 0 or (count is not None and count < 0):
        raise DefinitionError("take and skip need a number of rows of 0 or more.")
    total = rows.num_rows
    size = None if total is None else max(0, total - start)
    if count is not None:
        size = count if size is None else min(size, count)
    if is_table(rows):
        assert size is not None
        return _view(rows, rows.dataset.select(range(start, start + size) if size else range(0)))

    def batches() -> Iterator[Batch]:
        stop = None if count is None else start + count
        yield from _portions(itertools.islice(row_tuples(rows), start, stop), columns_of(rows))

    return source_like(rows, batches, None if total is None else size)


def shuffle(rows: Table, seed: int, buffer_size: int) -> Table:
    """Puts rows in random order: a table as a whole, others within a buffer."""
    if is_table(rows):
        return _view(rows, rows.dataset.select(np.random.default_rng(seed).permutation(rows.num_rows)))

    def batches() -> Iterator[Batch]:
        rng = random.Random(seed)

        def mixed() -> Iterator[tuple[Any, ...]]:
            held: list[tuple[Any, ...]] = []
            for row in row_tuples(rows):
                if len(held) < buffer_size:
                    held.append(row)
                    continue
                position = rng.randrange(buffer_size)
                yield held[position]
                held[position] = row
            rng.shuffle(held)
            yield from held

        yield from _portions(mixed(), columns_of(rows))

    return source_like(rows, batches, rows.num_rows)


def sort(rows: Table, names: list[str], reverse: list[bool], null_placement: str) -> Table:
    """Sorts rows by columns, stably, with missing values at one end."""
    if null_placement not in ("at_end", "at_start"):
        raise DefinitionError(f'sort: null_placement is {null_placement!r}; expected "at_end" or "at_start".')
    keys = {name: [] for name in names}  # type: dict[str, list[Any]]
    for batch in (keep_columns(rows, names)).batches():
        for name in names:
            keys[name].extend(batch[name])
    order = list(range(len(keys[names[0]]))) if names else []
    for name, backwards in reversed(list(zip(names, reverse, strict=True))):
        values = keys[name]
        present = [index for index in order if values[index] is not None]
        missing = [index for index in order if values[index] is None]
        # sorted() keeps equal rows in order, also when the order is reversed.
        present.sort(key=values.__getitem__, reverse=backwards)
        order = present + missing if null_placement == "at_end" else missing + present
    return select(rows, order)


def reverse(rows: Table) -> Table:
    """Puts the last row first."""
    if is_table(rows):
        return _view(rows, rows.dataset.select(range(rows.num_rows - 1, -1, -1)))

    def batches() -> Iterator[Batch]:
        yield from _portions(reversed(list(row_tuples(rows))), columns_of(rows))

    return source_like(rows, batches, rows.num_rows)


def append(rows: Table, item: dict[str, Any]) -> Table:
    """Adds a row at the end."""

    def batches() -> Iterator[Batch]:
        yield from rows.batches()
        yield {name: [item[name]] for name in columns_of(rows)}

    return source_like(rows, batches, None if rows.num_rows is None else rows.num_rows + 1)


def shard(rows: Table, num_shards: int, index: int, contiguous: bool) -> Table:
    """Takes one of several parts."""
    if is_table(rows):
        return _view(rows, rows.dataset.shard(num_shards, index, contiguous=contiguous))
    if contiguous:
        total = rows.num_rows
        if total is None:
            raise DefinitionError("shard: neighbouring rows need a known number of rows. Use save() first.")
        size, extra = divmod(total, num_shards)
        return span(rows, index * size + min(index, extra), size + (index < extra))

    def batches() -> Iterator[Batch]:
        yield from _portions(itertools.islice(row_tuples(rows), index, None, num_shards), columns_of(rows))

    return source_like(rows, batches, None)


def concatenated(tables: list[OutputDataset | OutputIterableDataset]) -> Table:
    """Puts the rows of several tables one after another."""
    names = tables[0].column_names
    if all(is_table(rows) and not rows.pickled for rows in tables):
        from datasets import concatenate_datasets

        parts = [rows.dataset.select_columns(names) for rows in tables]
        if all(part.features == parts[0].features for part in parts):
            return OutputDataset(tables[0].step, concatenate_datasets(parts))
    sizes = [rows.num_rows for rows in tables]

    def batches() -> Iterator[Batch]:
        for rows in tables:
            for batch in rows.batches():
                yield {name: batch[name] for name in names}

    total = None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)
    return RowSource(names, batches, total, any(rows.pickled for rows in tables))


def side_by_side(tables: list[OutputDataset | OutputIterableDataset]) -> Table:
    """Puts the columns of several tables next to each other."""
    names = [name for rows in tables for name in rows.column_names]
    if all(is_table(rows) and not rows.pickled and rows.dataset._indices is None for rows in tables):
        from datasets import concatenate_datasets

        return OutputDataset(tables[0].step, concatenate_datasets([rows.dataset for rows in tables], axis=1))

    def batches() -> Iterator[Batch]:
        ended = object()
        joined = itertools.zip_longest(*(row_tuples(rows) for rows in tables), fillvalue=ended)
        yield from _portions((joint(row, index, ended) for index, row in enumerate(joined)), names)

    def joint(row: tuple[Any, ...], index: int, ended: object) -> tuple[Any, ...]:
        if any(part is ended for part in row):
            short = ", ".join(f'"{rows.step.name}"' for rows, part in zip(tables, row, strict=True) if part is ended)
            raise StepOutputError(f"zipped: the steps have different numbers of rows: {short} ends after {index}.")
        return tuple(itertools.chain(*row))

    sizes = [rows.num_rows for rows in tables if rows.num_rows is not None]
    return RowSource(names, batches, sizes[0] if sizes else None, any(rows.pickled for rows in tables))


def to_dataset(rows: Table) -> Dataset:
    """Returns the rows as a dataset; rows that are not on disk are written to a folder that goes with the process."""
    if is_table(rows):
        return rows.dataset
    folder = Path(tempfile.mkdtemp(prefix="datadreamer_like-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    writer = TableWriter(folder, columns_of(rows))
    for batch in rows.batches():
        writer.write(batch)
    writer.close(folder.name)
    return open_table(folder)


def _view(rows: OutputDataset, dataset: Any) -> OutputDataset:
    return OutputDataset(rows.step, dataset, rows.pickled)


def source_like(
    rows: Table, batches: Callable[[], Iterator[Batch]], num_rows: int | None, columns: list[str] | None = None
) -> RowSource:
    """Returns rows made by `batches`, which come from `rows`; their columns too, unless others are named."""
    return RowSource(columns if columns is not None else columns_of(rows), batches, num_rows, rows.pickled)


def row_tuples(rows: Table) -> Iterator[tuple[Any, ...]]:
    """Yields rows as tuples of their values."""
    for batch in rows.batches():
        yield from zip(*batch.values(), strict=True)


def _portions(rows: Iterator[tuple[Any, ...]], names: list[str]) -> Iterator[Batch]:
    while portion := list(itertools.islice(rows, BATCH_SIZE)):
        yield dict(zip(names, map(list, zip(*portion, strict=True)), strict=True))
