"""What operations do to rows: functions from one table to another. A table on disk stays one where rows only move."""

from __future__ import annotations

import atexit
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from datadreamer_like.errors import DefinitionError, EmptyDataset, StepOutputError
from datadreamer_like.graph.dataset import BATCH_SIZE, Batch, OutputDataset, OutputIterableDataset, RowSource
from datadreamer_like.storage.tables import TableWriter, open_table

if TYPE_CHECKING:
    from datasets import Dataset

# Rows that a mapped function is tried on to learn what columns it makes.
_SAMPLES = 10

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
        for position, row in enumerate(_tuples(rows)):
            if position in wanted:
                held[position] = row
            if position >= last:
                break
        missing = [index for index in indices if index not in held]
        if missing:
            raise DefinitionError(f"select: there is no row {missing[0]}.")
        yield from _portions((held[index] for index in indices), columns_of(rows))

    return _source(rows, batches, len(indices))


def keep_columns(rows: Table, names: list[str]) -> Table:
    """Keeps the named columns, in that order."""
    if is_table(rows):
        return _view(rows, rows.dataset.select_columns(names))

    def batches() -> Iterator[Batch]:
        for batch in rows.batches():
            yield {name: batch[name] for name in names}

    return _source(rows, batches, rows.num_rows, names)


def rename(rows: Table, names: Mapping[str, str]) -> Table:
    """Gives columns other names."""
    if is_table(rows):
        return _view(rows, rows.dataset.rename_columns(dict(names)))

    def batches() -> Iterator[Batch]:
        for batch in rows.batches():
            yield {names.get(name, name): values for name, values in batch.items()}

    return _source(rows, batches, rows.num_rows, [names.get(name, name) for name in columns_of(rows)])


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
        yield from _portions(itertools.islice(_tuples(rows), start, stop), columns_of(rows))

    return _source(rows, batches, None if total is None else size)


def shuffle(rows: Table, seed: int, buffer_size: int) -> Table:
    """Puts rows in random order: a table as a whole, others within a buffer."""
    if is_table(rows):
        return _view(rows, rows.dataset.select(np.random.default_rng(seed).permutation(rows.num_rows)))

    def batches() -> Iterator[Batch]:
        rng = random.Random(seed)

        def mixed() -> Iterator[tuple[Any, ...]]:
            held: list[tuple[Any, ...]] = []
            for row in _tuples(rows):
                if len(held) < buffer_size:
                    held.append(row)
                    continue
                position = rng.randrange(buffer_size)
                yield held[position]
                held[position] = row
            rng.shuffle(held)
            yield from held

        yield from _portions(mixed(), columns_of(rows))

    return _source(rows, batches, rows.num_rows)


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
        yield from _portions(reversed(list(_tuples(rows))), columns_of(rows))

    return _source(rows, batches, rows.num_rows)


def append(rows: Table, item: dict[str, Any]) -> Table:
    """Adds a row at the end."""

    def batches() -> Iterator[Batch]:
        yield from rows.batches()
        yield {name: [item[name]] for name in columns_of(rows)}

    return _source(rows, batches, None if rows.num_rows is None else rows.num_rows + 1)


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
        yield from _portions(itertools.islice(_tuples(rows), index, None, num_shards), columns_of(rows))

    return _source(rows, batches, None)


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
                yield batch, [self.function(*given, *([list(indices)] if self.with_indices else []))]
                continue
            arguments: Any
            if self.input_columns:
                arguments = zip(*(batch[name] for name in self.input_columns), strict=True)
            else:
                names = list(batch)
                arguments = ((dict(zip(names, row, strict=True)),) for row in zip(*batch.values(), strict=True))
            if self.with_indices:
                arguments = ((*row, index) for row, index in zip(arguments, indices, strict=True))
            yield batch, [self.function(*row) for row in arguments]


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
    return replace(_source(rows, lambda: mapped(rows), total, names), sample=first)


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
    for row in itertools.islice(_tuples(rows), _SAMPLES):
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
    return replace(_source(rows, batches, total), sample=sample)


@dataclass(frozen=True)
class Split:
    """Takes one of the random parts that some sizes make.

    Attributes:
        sizes: Size of each part: a share, a number, or None.
        name: Which part to take.
        stratify_by: Column whose values get equal shares in all parts.
        seed: Seed of the division.
    """

    sizes: Mapping[str, float | None]
    name: str
    stratify_by: str | None = None
    seed: int = 42

    def __call__(self, rows: Table) -> Table:
        """Takes the part from a table, or from other rows by reading them twice."""
        labels: list[Any] = []
        total = 0
        for batch in (keep_columns(rows, [self.stratify_by]) if self.stratify_by else rows).batches():
            total += len(next(iter(batch.values()), ()))
            labels.extend(batch[self.stratify_by] if self.stratify_by else ())
        if total == 0:
            raise EmptyDataset("splits: there are no rows to divide.")
        counts = _counts(self.sizes, total)
        parts = self._stratified(labels, counts) if self.stratify_by else self._plain(total, counts)
        return select(rows, sorted(parts[self.name]))

    def _plain(self, total: int, counts: Mapping[str, int]) -> dict[str, list[int]]:
        order = np.random.default_rng(self.seed).permutation(total).tolist()
        ends = list(itertools.accumulate(counts.values(), initial=0))
        return {name: order[start:end] for name, start, end in zip(counts, ends, ends[1:], strict=False)}

    def _stratified(self, labels: Sequence[Any], counts: Mapping[str, int]) -> dict[str, list[int]]:
        # Rows of one label stand together, each label in random order; dealing them out in turn by the parts' shares
        # gives each part its share of each label, to within one row.
        rng = np.random.default_rng(self.seed)
        groups: dict[str, list[int]] = {}
        for index in rng.permutation(len(labels)).tolist():
            groups.setdefault(repr(labels[index]), []).append(index)
        line = [index for key in sorted(groups) for index in groups[key]]
        total = len(line)
        parts: dict[str, list[int]] = {name: [] for name in counts}
        for position, index in enumerate(line, start=1):
            owed = {name: counts[name] * position / total - len(part) for name, part in parts.items()}
            unused = (total - sum(counts.values())) * position / total - (position - 1 - sum(map(len, parts.values())))
            name = max(owed, key=owed.__getitem__)
            if owed[name] >= unused and len(parts[name]) < counts[name]:
                parts[name].append(index)
        return parts


def split_names(sizes: Mapping[str, float | None]) -> list[str]:
    """Returns the names of the parts that some sizes make; a single size leaves a rest that is a part too."""
    named = [name for name, size in sizes.items() if size is not None]
    for name in named:
        size = sizes[name]
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 0:
            raise DefinitionError(f"splits: {name}_size is {size!r}; expected a share (0.1) or a number of rows (100).")
    if not named:
        raise DefinitionError("splits needs at least one of train_size, validation_size, test_size.")
    if len(named) == 1 and sizes[named[0]] not in (1.0,):
        named.append("test" if named[0] != "test" else "train")
    return sorted(named, key=("train", "validation", "test").index)


def _counts(sizes: Mapping[str, float | None], total: int) -> dict[str, int]:
    names = split_names(sizes)
    counts = {}
    for name in names:
        size = sizes[name]
        if size is not None:
            counts[name] = round(size * total) if isinstance(size, float) else int(size)
    shares = [size for size in sizes.values() if isinstance(size, float)]
    rest = total - sum(counts.values())
    for name in names:
        if name not in counts:
            counts[name] = rest
            rest = 0
    if counts and len(shares) == len(counts) and abs(sum(shares) - 1.0) < 1e-9:
        counts[names[0]] += rest  # rounding
        rest = 0
    if rest < 0 or any(count < 0 for count in counts.values()):
        raise DefinitionError(f"splits: the sizes {dict(sizes)} ask for more than the {total} rows that there are.")
    return {name: counts[name] for name in names}


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
        joined = zip(*(_tuples(rows) for rows in tables), strict=True)
        yield from _portions((tuple(itertools.chain(*row)) for row in joined), names)

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


def _source(
    rows: Table, batches: Callable[[], Iterator[Batch]], num_rows: int | None, columns: list[str] | None = None
) -> RowSource:
    return RowSource(columns if columns is not None else columns_of(rows), batches, num_rows, rows.pickled)


def _tuples(rows: Table) -> Iterator[tuple[Any, ...]]:
    for batch in rows.batches():
        yield from zip(*batch.values(), strict=True)


def _portions(rows: Iterator[tuple[Any, ...]], names: list[str]) -> Iterator[Batch]:
    while portion := list(itertools.islice(rows, BATCH_SIZE)):
        yield dict(zip(names, map(list, zip(*portion, strict=True)), strict=True))


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
