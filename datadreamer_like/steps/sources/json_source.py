"""The source for JSON files: JSON lines or one array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, ClassVar

from datadreamer_like.errors import DataError
from datadreamer_like.graph.rows import Batch

from ..base.columns import in_columns
from ..base.lazy_rows import LazyRowBatches
from .json_shape import KINDS, Shape, checked_text, parse_float, parse_int
from .text_file_source import TextFileSource

_CHUNK = 2**16
_EXPECTED_LINES = "a JSON object in each line, or one array of objects (inside an object: field=...)"


class JSONDataSource(TextFileSource):
    """Rows of JSON files: JSON lines (one object per line) or one array of objects.

    The columns are the union of those of all rows; missing values are None. Integers and floats in one column become
    floats; other mixed plain values become texts (`1` and `"x"` become `"1"` and `"x"`), as do integers beyond 64 bits
    (next to floats 2**53). NaN among texts and other values becomes None. All this holds inside lists and objects too.
    Dates stay texts.

    Files are given as in `CSVDataSource`; those of a folder are `.json`, `.jsonl` and `.ndjson` files. Options of the
    reader are `encoding` (utf-8) and `field` (each file is one object, and the rows are the array in this field).

    Raises:
        DataError: A file does not exist, cannot be read or is malformed; the message names file and line.
        EmptyDataset: There are no rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson")
    example_text: ClassVar[str] = '{"text": "one", "stars": 1}\n{"text": "two"}\n'
    known_options: ClassVar[dict[str, Any]] = {"encoding": "utf-8", "field": None}

    def run(self) -> LazyRowBatches:
        """Reads the files twice: first for columns, types and errors, then for the rows."""
        self.register_files()
        columns: dict[str, Shape] = {}
        count = 0
        for file in self.files:
            for line, row in self._rows(file):
                count += 1
                for name, value in row.items():
                    try:
                        if name not in columns:
                            columns[checked_text(name)] = Shape()
                        columns[name].add(value)
                    except ValueError as error:
                        shown = name.encode(errors="backslashreplace").decode()
                        raise DataError(f'"{self.name}": {file}, line {line}: column "{shown}"{error}') from error
                    except RecursionError as error:
                        raise self._malformed(file, line, error, "") from error
        names = self.found_columns(columns)
        changed = {name: shape for name, shape in columns.items() if shape.is_changed()}
        return LazyRowBatches(lambda: self._batches(names, changed), total_num_rows=count, save=True)

    def _batches(self, names: list[str], changed: dict[str, Shape]) -> Iterator[Batch]:
        for batch in in_columns((row for file in self.files for _, row in self._rows(file)), names):
            for name, shape in changed.items():
                batch[name] = list(map(shape.fitted, batch[name]))
            yield batch

    def _rows(self, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the rows of a file, each with the number of its last line."""
        with self.opened(file, newline="\n") as stream:
            for line, row in self._values(file, stream):
                if not isinstance(row, dict):
                    raise DataError(
                        f'"{self.name}": {file}, line {line} is {KINDS[type(row)]}; expected an object like '
                        '{"text": "..."}.'
                    )
                yield line, row

    def _values(self, file: Path, stream: IO[str]) -> Iterator[tuple[int, Any]]:
        if self.config["field"] is not None:
            return self._of_field(file, stream)
        line = 1
        while (sign := stream.read(1)).isspace():  # the first other character distinguishes the two forms
            line += sign == "\n"
        return self._of_array(file, stream, line) if sign == "[" else self._of_lines(file, stream, line, sign)

    def _of_lines(self, file: Path, stream: IO[str], first: int, sign: str) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(chain([sign + stream.readline()], stream), first):
            if line.strip():
                try:
                    yield number, _DECODER.decode(line)
                except (ValueError, RecursionError) as error:
                    raise self._malformed(file, number, error, _EXPECTED_LINES) from error

    def _of_array(self, file: Path, stream: IO[str], line: int) -> Iterator[tuple[int, Any]]:
        """Yields the elements of an array; only one element's text is in memory."""
        text, start, first = "", 0, True
        while True:
            try:
                value, end = _element(text, start, first)
            except RecursionError as error:
                line += text.count("\n", start, text.find("{", start))  # where the row starts
                raise self._malformed(file, line, error, "an array of JSON objects") from error
            except ValueError as error:
                place = getattr(error, "pos", start)
                # A string or an element that ends with the text may be incomplete; doubling it keeps the work linear.
                incomplete = "Unterminated string" in str(error) or place > len(text) - _LONGEST_TOKEN
                if incomplete and (more := stream.read(max(_CHUNK, len(text) - start))):
                    text, start = text[start:] + more, 0
                    continue
                line += text.count("\n", start, place)
                what = ValueError(getattr(error, "msg", error))
                raise self._malformed(file, line, what, "an array of JSON objects") from error
            if end == len(text) and (more := stream.read(_CHUNK)):  # a number may be cut
                text, start = text[start:] + more, 0
                continue
            if value is _END:
                return
            line += text.count("\n", start, end)
            start, first = end, False
            yield line, value

    def _of_field(self, file: Path, stream: IO[str]) -> Iterator[tuple[int, Any]]:
        field = self.config["field"]
        try:
            whole = _DECODER.decode(stream.read())
        except json.JSONDecodeError as error:
            raise self._malformed(file, error.lineno, error, "one JSON object") from error
        except RecursionError as error:
            raise self._malformed(file, 1, error, "one JSON object") from error
        rows = whole.get(field) if isinstance(whole, dict) else None
        if not isinstance(rows, list):
            found = f"the fields {', '.join(whole)}" if isinstance(whole, dict) else KINDS[type(whole)]
            raise DataError(f'"{self.name}": {file} has no array in a field "{field}"; it holds {found}.')
        for row in rows:
            yield 1, row

    def _malformed(self, file: Path, line: int, error: Exception, expected: str) -> DataError:
        if isinstance(error, RecursionError):
            return DataError(f'"{self.name}": {file}, line {line} holds values that are nested too deeply.')
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return DataError(f'"{self.name}": {file}, line {line} is malformed: {what}. Expected {expected}.')


_END = object()
_LONGEST_TOKEN = len("\\ud83d\\ude00")  # of those where an error is reported at the start
_SEPARATOR = re.compile(r"\s*([],]?)\s*")
_DECODER = json.JSONDecoder(parse_int=parse_int, parse_float=parse_float)


def _element(text: str, start: int, first: bool) -> tuple[Any, int]:
    """Returns an array's next element, or `_END`, and the position after it; `ValueError` if it is cut or malformed."""
    separator = _SEPARATOR.match(text, start)
    assert separator is not None
    sign, after = separator[1], separator.end()
    if sign == "]":
        if after < len(text):
            raise json.JSONDecodeError("there is more after the end of the array", text, after)
        return _END, after
    if first:
        return _DECODER.raw_decode(text, separator.start(1))
    if sign != ",":
        found = text[after : after + 1] or "the end of the file"
        raise json.JSONDecodeError(f"expected ',' or ']' after an element, found {found!r}", text, after)
    return _DECODER.raw_decode(text, after)
