"""Tables on disk: Arrow files in the layout that `datasets.load_from_disk` opens, memory-mapped.

A table is written once, in batches. Its schema fits all rows: when a batch needs a wider type (values in a null column,
floats in a column of integers, a new field of a struct), writing continues in a new file, and the earlier files are
cast at the end. Metadata that `datasets` does not support is in `columns.schema`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datadreamer_like.errors import StepOutputTypeError, StorageError

from .schemas import cast, widened, with_schema
from .values import NONE_KEYS, features_of, to_batch, unpickle, without_pickles

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SCHEMA = "columns.schema"

# Small batches are joined: random access is faster in few large ones.
_ROWS_AT_ONCE = 16_384
_BYTES_AT_ONCE = 16 * 2**20
# Positions that are read by slices, and the bytes of a table below which copying all of it is faster than its chunks.
_SLICED_ROWS = 32
_COPIED_BYTES = 128 * 2**20
_SAMPLED_ROWS = 1_000


class TableWriter:
    """Writes batches of rows into an existing, empty folder for `open_table`.

    `what` is the owner of the rows, for error messages; `schema` is that of a table without rows.
    """

    def __init__(self, folder: Path, what: str = "table", schema: pa.Schema | None = None) -> None:
        self.folder = folder
        self.what = what
        self.num_rows = 0
        self._without_rows = schema or pa.schema([])
        self._schema: pa.Schema | None = None
        self._parts: list[tuple[Path, pa.Schema]] = []
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0
        self._stream: pa.RecordBatchStreamWriter | None = None

    def write(self, batch: Mapping[str, Any] | pa.RecordBatch) -> None:
        """Appends rows: columns as lists or arrays of equal length, or an Arrow record batch."""
        rows = batch if isinstance(batch, pa.RecordBatch) else to_batch(batch, self.what)
        if self._schema is None:
            self._schema = rows.schema.remove_metadata()
        elif not rows.schema.equals(self._schema, check_metadata=True):
            self._schema = widened(self._schema, rows.schema, self.what)
        self.num_rows += rows.num_rows
        self._held.append(rows)
        self._held_rows += rows.num_rows
        self._held_bytes += rows.nbytes
        if self._held_rows >= _ROWS_AT_ONCE or self._held_bytes >= _BYTES_AT_ONCE:
            self._flush()

    def close(self, fingerprint: str) -> pa.Schema:
        """Completes the files and their metadata; returns the schema. `fingerprint` is for the caches of `datasets`."""
        schema = self._without_rows if self._schema is None else self._schema
        plain = _plain(schema)
        self._flush()
        if not self._parts:
            self._next_part(plain)
        self.abort()
        names = []
        for index, (part, written) in enumerate(self._parts):
            names.append(f"data-{index:05d}-of-{len(self._parts):05d}.arrow")
            if written == plain:
                part.rename(self.folder / names[-1])
            else:
                _rewrite(part, self.folder / names[-1], plain, self.what)
        try:
            features = features_of(schema).to_dict()
        except ValueError as error:
            raise StepOutputTypeError(f"{self.what}: {error}. Convert these values to another type first.") from error
        info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": fingerprint,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        save_schema(self.folder, schema)
        (self.folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
        (self.folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        return schema

    def abort(self) -> None:
        """Closes the files without metadata; the caller removes the folder."""
        self._held.clear()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _flush(self) -> None:
        if not self._held or self._schema is None:
            return
        plain = _plain(self._schema)
        table = pa.Table.from_batches([cast(batch, plain, self.what) for batch in self._held], plain)
        self._held.clear()
        self._held_rows = self._held_bytes = 0
        stream = self._stream
        if stream is None or self._parts[-1][1] != plain:
            stream = self._next_part(plain)
        stream.write_table(table.combine_chunks() if table.num_rows else table)

    def _next_part(self, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
        if self._stream is not None:
            self._stream.close()
        path = self.folder / f"part-{len(self._parts):05d}.arrow"
        self._stream = pa.ipc.new_stream(str(path), schema)
        self._parts.append((path, schema))
        return self._stream


def open_table(folder: Path) -> Dataset:
    """Opens a written table as a dataset, without reading its rows into memory."""
    from datasets import Dataset

    with _readable(folder):
        return Dataset.load_from_disk(str(folder), keep_in_memory=False)


def save_schema(folder: Path, schema: pa.Schema) -> None:
    """Writes a table's schema, with what `datasets` does not support, next to its files."""
    (folder / _SCHEMA).write_bytes(schema.serialize())


def with_saved_keys(schema: pa.Schema, folder: Path) -> pa.Schema:
    """Returns a schema with the optional keys of nested rows that `save_schema` wrote, but not its marks of pickles."""
    try:
        saved = pa.ipc.read_schema(pa.py_buffer((folder / _SCHEMA).read_bytes()))
    except (OSError, pa.ArrowInvalid):
        return schema
    fields = []
    for field in schema:
        known = saved.field(field.name) if field.name in saved.names else None
        keys = (known.metadata or {}).get(NONE_KEYS) if known is not None and known.type == field.type else None
        with suppress(ValueError):
            if keys is not None and json.loads(keys) is not None:
                field = field.with_metadata({**(field.metadata or {}), NONE_KEYS: keys})
        fields.append(field)
    return pa.schema(fields)


def opened_dataset(folder: str | os.PathLike[str], pickled: Iterable[str] = ()) -> Dataset | DatasetDict:
    """Opens what `save_to_disk` wrote; values of the columns `pickled` are restored when they are read."""
    from datasets import load_from_disk

    dataset = load_from_disk(os.fspath(folder))
    names = list(pickled)

    def restored(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: list(map(unpickle, column)) if name in names else column for name, column in batch.items()}

    return dataset.with_transform(restored) if names else dataset


def read_table(folder: Path, pickles: bool = False) -> pa.Table:
    """Opens a written table as an Arrow table, memory-mapped, with the metadata of its columns.

    Pickled Python objects are bytes unless `pickles` is true: reading a pickle runs code, so the caller must know who
    wrote the table.
    """
    with _readable(folder):
        schema = pa.ipc.read_schema(pa.py_buffer((folder / _SCHEMA).read_bytes()))
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        batches: list[pa.RecordBatch] = []
        for file in state["_data_files"]:
            with pa.ipc.open_stream(pa.memory_map(str(folder / file["filename"]))) as reader:
                batches.extend(reader)
        schema = schema if pickles else without_pickles(schema)
        return pa.Table.from_batches([with_schema(batch, schema) for batch in batches], schema)


def is_own(folder: Path) -> bool:
    """Returns whether the user who runs this process wrote all files of a table."""
    if not hasattr(os, "getuid"):
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:  # network file systems may show other owners than getuid()
            owner = os.fstat(probe.fileno()).st_uid
    except OSError:
        owner = os.getuid()
    return all(path.stat().st_uid == owner for path in (folder, *folder.iterdir()))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"The rows in {folder} were removed. Run the script again.") from error
    except (pa.ArrowInvalid, OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"The rows in {folder} are damaged ({error}). Remove the folder {folder.parent} and run the script again."
        ) from error


def as_dataset(table: pa.Table, indices: Any, fingerprint: str) -> Dataset:
    """Returns a `datasets.Dataset` of an Arrow table without copying it.

    `indices` are the positions of the dataset's rows; None for all of them, in order. `fingerprint` is for the caches
    of `datasets`.
    """
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    chosen = None if indices is None else InMemoryTable(pa.table({"indices": pa.array(indices, pa.uint64())}))
    data = InMemoryTable(with_schema(table, _plain(table.schema)))
    return Dataset(data, DatasetInfo(features=features_of(table.schema)), indices_table=chosen, fingerprint=fingerprint)


def portions(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[list[pa.RecordBatch]]:
    """Yields all rows as slices of the batches, `size` rows at once; the last may be fewer."""
    held: list[pa.RecordBatch] = []
    room = size
    for batch in batches:
        rest = batch
        while rest.num_rows:
            held.append(rest.slice(0, room))
            rest = rest.slice(room)
            room -= held[-1].num_rows
            if not room:
                yield held
                held, room = [], size
    if held:
        yield held


def taken_rows(data: pa.Table, positions: np.ndarray[Any, Any]) -> pa.Table:
    """Returns the rows of a table at some positions, 0 or more, in that order.

    Arrow's own `take` first copies each column as a whole, which may be larger than the memory, and fails if texts are
    longer than 2 GB together. Here only chunks that hold the rows are read.
    """
    if len(positions) <= _SLICED_ROWS:
        slices = [data.slice(position, 1) for position in positions.tolist()]
        return pa.concat_tables(slices) if slices else data.slice(0, 0)
    sample = data.slice(0, _SAMPLED_ROWS)
    if sample.nbytes * data.num_rows <= _COPIED_BYTES * sample.num_rows:
        return data.take(pa.array(positions))
    order = np.argsort(positions, kind="stable")
    ordered, parts, start, place = positions[order], [], 0, 0
    for batch in data.to_batches():
        end = place + int(np.searchsorted(ordered[place:], start + batch.num_rows))
        if end > place:
            parts.append(batch.take(pa.array(ordered[place:end] - start)))
        start, place = start + batch.num_rows, end
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return pa.Table.from_batches(parts, data.schema).combine_chunks().take(pa.array(places))


def rebatched(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows in batches of `size`; the last may be smaller. Types may change between batches."""
    for held in portions(batches, size):
        if any(not batch.schema.equals(held[0].schema, check_metadata=True) for batch in held):
            schema = reduce(partial(widened, what="rows"), (batch.schema for batch in held))
            held = [cast(batch, schema) for batch in held]
        (joined,) = pa.Table.from_batches(held).combine_chunks().to_batches()
        yield joined


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.remove_metadata() for field in schema])


def _rewrite(part: Path, target: Path, schema: pa.Schema, what: str) -> None:
    with pa.ipc.open_stream(pa.memory_map(str(part))) as reader, pa.ipc.new_stream(str(target), schema) as writer:
        for batch in reader:
            writer.write_batch(cast(batch, schema, what))
    part.unlink()
