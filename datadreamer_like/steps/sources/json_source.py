"""The source for JSON files: JSON lines or one array of objects."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, ClassVar

from datadreamer_like.errors import DataError
from datadreamer_like.graph.output import BATCH_SIZE, Batch

from ..base.lazy_rows import LazyRowBatches
from .file_source import Files, FileSource

Row = dict[str, Any]

_CHUNK = 2**16


class JSONDataSource(FileSource):
    """Rows of JSON files: JSON lines (one object per line) or one array of objects.

    The columns are the union of those of all rows; missing values are None. Integers and floats in one column become
    floats; other mixed plain values become texts (`1` and `"x"` become `"1"` and `"x"`). Dates stay texts.

    Args:
        name: Name of the step.
        data_folder: Folder whose `.json`, `.jsonl` and `.ndjson` files are read, or that `data_files` are relative to.
        data_files: A file, a pattern like `"part-*.jsonl"`, or a list of them. `.gz`, `.bz2` and `.xz` are
            decompressed.
        **config_kwargs: Options of `Step` and of the reader: `encoding` (utf-8), `field` (each file is one object, and
            the rows are the array in this field).

    Raises:
        DataError: A file does not exist, cannot be read or is malformed; the message names file and line.
        EmptyDataset: There are no rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson")
    known_options: ClassVar[dict[str, Any]] = {"encoding": "utf-8", "field": None}

    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        **config_kwargs: Any,
    ) -> None:
        super().__init__(name, data_folder, data_files, config_kwargs)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        (folder / "texts.jsonl").write_text('{"text": "one", "stars": 1}\n{"text": "two"}\n', encoding="utf-8")
        return {"data_files": folder / "texts.jsonl"}

    def run(self) -> LazyRowBatches:
        """Reads the files twice: first for columns, types and errors, then for the rows."""
        self.register_files()
        kinds: dict[str, set[type]] = {}
        count = 0
        for file in self.files:
            for line, row in self._rows(file):
                count += 1
                for name, value in row.items():
                    seen = kinds.setdefault(name, set())
                    if type(value) not in seen and value is not None:
                        self._check_kind(file, line, name, value, seen)
                        seen.add(type(value))
        names = self.found_columns(list(kinds))
        texts = [name for name in names if len(kinds[name]) > 1 and not kinds[name] <= {int, float}]
        return LazyRowBatches(lambda: self._batches(names, texts), total_num_rows=count, save=True)

    def _batches(self, names: list[str], texts: list[str]) -> Iterator[Batch]:
        rows = (row for file in self.files for _, row in self._rows(file))
        while portion := list(islice(rows, BATCH_SIZE)):
            batch = {name: [row.get(name) for row in portion] for name in names}
            for name in texts:
                batch[name] = [v if v is None or isinstance(v, str) else json.dumps(v) for v in batch[name]]
            yield batch

    def _check_kind(self, file: Path, line: int, name: str, value: Any, seen: set[type]) -> None:
        nested = {dict, list}
        if seen and (type(value) in nested or seen & nested):
            raise DataError(
                f'"{self.name}": {file}, line {line}: column "{name}" is {_KINDS[type(value)]}; earlier rows have '
                f"{_KINDS[next(iter(seen))]} there. Give the column one type."
            )

    def _rows(self, file: Path) -> Iterator[tuple[int, Row]]:
        """Yields the rows of a file, each with the number of its last line."""
        with self.opened(file) as stream:
            if self.config["field"] is not None:
                yield from self._of_field(file, stream)
                return
            start = stream.read(_CHUNK)
            while start.isspace():  # the first other character distinguishes the two forms
                more = stream.read(_CHUNK)
                if not more:
                    return
                start += more
            if start.lstrip().startswith("["):
                yield from self._of_array(file, start, stream)
            else:
                yield from self._of_lines(file, start, stream)

    def _of_lines(self, file: Path, start: str, stream: IO[str]) -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(_lines(start, stream), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise self._malformed(file, number, error, _EXPECTED_LINES) from error
                yield number, self._checked(file, number, row)

    def _of_array(self, file: Path, start: str, stream: IO[str]) -> Iterator[tuple[int, Row]]:
        reader = _Array(start, stream)
        while True:
            try:
                row = reader.next_value()
            except ValueError as error:
                raise self._malformed(file, reader.line, error, "an array of JSON objects") from error
            if row is _END:
                return
            yield reader.line, self._checked(file, reader.line, row)

    def _of_field(self, file: Path, stream: IO[str]) -> Iterator[tuple[int, Row]]:
        field = self.config["field"]
        try:
            whole = json.load(stream)
        except json.JSONDecodeError as error:
            raise self._malformed(file, error.lineno, error, "one JSON object") from error
        rows = whole.get(field) if isinstance(whole, dict) else None
        if not isinstance(rows, list):
            found = f"the fields {', '.join(whole)}" if isinstance(whole, dict) else _KINDS[type(whole)]
            raise DataError(f'"{self.name}": {file} has no array in a field "{field}"; it holds {found}.')
        for row in rows:
            yield 1, self._checked(file, 1, row)

    def _checked(self, file: Path, line: int, row: Any) -> Row:
        if not isinstance(row, dict):
            raise DataError(
                f'"{self.name}": {file}, line {line} is {_KINDS[type(row)]}; expected an object like {{"text": "..."}}.'
            )
        return row

    def _malformed(self, file: Path, line: int, error: ValueError, expected: str) -> DataError:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) and error.lineno == 1 else ""
        return DataError(f'"{self.name}": {file}, line {line} is malformed{where}: {what}. Expected {expected}.')


_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
_EXPECTED_LINES = "a JSON object in each line, or one array of objects (inside an object: field=...)"
_END = object()


class _Array:
    """Reads the elements of a JSON array one by one, with only one element's text in memory."""

    def __init__(self, start: str, stream: IO[str]) -> None:
        self._decoder = json.JSONDecoder()
        self._text = start
        self._stream = stream
        self._place = start.index("[") + 1
        self._counted = 0
        self._first = True
        self.line = 1

    def next_value(self) -> Any:
        """Returns the next element, or `_END`.

        Raises:
            ValueError: The text is not a valid array; `line` is the line of the error.
        """
        sign = self._peek()
        if sign == "]":
            self._place += 1
            if self._peek():
                raise ValueError("there is more after the end of the array")
            return _END
        if not self._first:
            if sign != ",":
                raise ValueError(f"expected ',' or ']' after an element, found {sign or 'the end of the file'!r}")
            self._place += 1
            self._peek()
        self._first = False
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # The element may be incomplete; doubling the amount read keeps the work linear.
                fault = error.pos - self._place
                if self._read(wanted):
                    wanted *= 2
                    continue
                self._count(self._place + fault)
                raise ValueError(error.msg) from error
            if end == len(self._text) and not isinstance(value, dict | list | str) and self._read(_CHUNK):
                continue  # a number may be cut
            self._place = end
            self._count(end)
            return value

    def _peek(self) -> str:
        while True:
            while self._place < len(self._text) and self._text[self._place].isspace():
                self._place += 1
            if self._place < len(self._text):
                self._count(self._place)
                return self._text[self._place]
            if not self._read(_CHUNK):
                self._count(self._place)
                return ""

    def _read(self, size: int) -> bool:
        self._count(self._place)
        more = self._stream.read(size)
        self._text = self._text[self._place :] + more
        self._place = self._counted = 0
        return bool(more)

    def _count(self, place: int) -> None:
        if place > self._counted:
            self.line += self._text.count("\n", self._counted, place)
            self._counted = place


def _lines(start: str, stream: IO[str]) -> Iterator[str]:
    held = start
    while True:
        *whole, held = held.split("\n")
        yield from whole
        more = stream.read(_CHUNK)
        if not more:
            yield held
            return
        held += more
