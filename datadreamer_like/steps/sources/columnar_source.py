"""The sources for files whose columns have types: Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, UnknownColumn, did_you_mean
from datadreamer_like.graph.rows import BATCH_SIZE
from datadreamer_like.storage.values import with_features

from ..base.lazy_rows import LazyRowBatches
from .file_source import FileSource

_EXAMPLE = pa.table({"text": ["one", "two"]})


class ColumnarSource(FileSource):
    """Base of sources whose files hold Arrow types; they are read in batches, and their types are kept.

    A subclass writes `reading`.
    """

    known_options: ClassVar[dict[str, Any]] = {"columns": None}

    def reading(self, file: Path) -> AbstractContextManager[tuple[pa.Schema, int | None, Callable[[list[str]], Any]]]:
        """Opens a file: its schema, number of rows (None if unknown), and a function that reads columns in batches."""
        raise NotImplementedError(f"{type(self).__name__} has no reading().")

    def configure(self) -> None:
        """Checks the columns that were asked for."""
        wanted = self.config["columns"]
        if wanted is None:
            return
        if not isinstance(wanted, list | tuple) or not all(isinstance(name, str) for name in wanted):
            raise ArgumentTypeError(f'"{self.name}": columns is {wanted!r:.100}; expected a list of names.')
        if not wanted or len(set(wanted)) < len(wanted):
            what = "names a column twice" if wanted else "is an empty list"
            raise DefinitionError(f'"{self.name}": columns {what}. Name each column to read once, or leave it out.')

    def run(self) -> LazyRowBatches:
        """Compares the columns of all files, then reads their rows."""
        self.register_files()
        schemas, counts = [], []
        for file in self.files:
            with self._readable(file), self.reading(file) as (schema, count, _):
                schemas.append(schema)
                counts.append(count)
        names = self._wanted(schemas[0], self.files[0])
        for file, schema in zip(self.files, schemas, strict=True):
            if sorted(schema.names) != sorted(schemas[0].names):
                raise DataError(
                    f'"{self.name}": {file} has the columns {", ".join(schema.names)}; {self.files[0]} has '
                    f"{', '.join(schemas[0].names)}. Make one source for each, or use files with the same columns."
                )
        total = None if None in counts else sum(count for count in counts if count is not None)
        self.found_columns(names)
        return LazyRowBatches(lambda: self._batches(names), total, save=True)

    def _wanted(self, schema: pa.Schema, file: Path) -> list[str]:
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise DataError(f'"{self.name}": {file} has the column "{name}" twice. Rename one of them.')
        wanted = self.config["columns"] or schema.names
        for name in wanted:
            if name not in schema.names:
                raise UnknownColumn(
                    f'"{self.name}": columns names "{name}"; the files have: {", ".join(schema.names)}.'
                    f"{did_you_mean(name, schema.names)}"
                )
        return list(wanted)

    def _batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        for file in self.files:
            with self._readable(file), self.reading(file) as (schema, _, read):
                marked = _marked(pa.schema([schema.field(name) for name in names], schema.metadata))
                for batch in read(names):
                    yield pa.RecordBatch.from_arrays(batch.select(names).columns, schema=marked)

    @contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        kind = self.suffixes[0].removeprefix(".").capitalize()
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(
                f'"{self.name}": {file} cannot be read as {kind} ({reason}). Check that it is complete and of that '
                "format."
            ) from error


class ParquetDataSource(ColumnarSource):
    """Rows of Parquet files, with their types; class names and images that `datasets` noted in them are kept.

    Files are given as in `CSVDataSource`; those of a folder are `.parquet` files, which must have the same columns. The
    option `columns` names the columns to read, by default all; the others are not read from disk.

    Raises:
        DataError: A file does not exist, is damaged or not Parquet, or its columns differ from those of the first.
        UnknownColumn: `columns` names a column that the files do not have.
        EmptyDataset: There are no rows.

    Example:
        >>> rows = ParquetDataSource("Reviews", data_files="reviews-*.parquet", columns=["text"])  # doctest: +SKIP
    """

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        pq.write_table(_EXAMPLE, folder / "texts.parquet")
        return {"data_files": folder / "texts.parquet"}

    @contextmanager
    def reading(self, file: Path) -> Iterator[tuple[pa.Schema, int, Callable[[list[str]], Any]]]:
        """Opens a file."""
        with pq.ParquetFile(file) as opened:
            yield (
                opened.schema_arrow,
                opened.metadata.num_rows,
                lambda names: opened.iter_batches(BATCH_SIZE, columns=names),
            )


class ArrowDataSource(ColumnarSource):
    """Rows of Arrow files, also Feather: the file format and the stream format, as `datasets` writes it.

    Files are given as in `CSVDataSource`; those of a folder are `.arrow`, `.feather` and `.ipc` files, which must have
    the same columns. The option `columns` names the columns to read, by default all.

    Raises:
        DataError: A file does not exist, is damaged or not Arrow, or its columns differ from those of the first.
        UnknownColumn: `columns` names a column that the files do not have.
        EmptyDataset: There are no rows.

    Example:
        >>> rows = ArrowDataSource("Reviews", data_files="reviews.feather")  # doctest: +SKIP
    """

    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc")

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        with pa.OSFile(str(folder / "texts.arrow"), "wb") as sink, pa.ipc.new_file(sink, _EXAMPLE.schema) as writer:
            writer.write_table(_EXAMPLE)
        return {"data_files": folder / "texts.arrow"}

    @contextmanager
    def reading(self, file: Path) -> Iterator[tuple[pa.Schema, None, Callable[[list[str]], Any]]]:
        """Opens a file."""
        with pa.memory_map(str(file)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as opened:
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if is_file else opened
                yield opened.schema, None, lambda names: batches


def _marked(schema: pa.Schema) -> pa.Schema:
    """Returns a schema with the features of `datasets` that it notes, and no other marks on its columns."""
    plain = pa.schema([pa.field(field.name, field.type) for field in schema])
    if b"huggingface" not in (schema.metadata or {}):
        return plain
    from datasets import Features

    return with_features(plain, Features.from_arrow_schema(schema))
