"""The source for CSV files: column types from all rows, errors with line numbers."""

from __future__ import annotations

import csv
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, UnknownColumn, did_you_mean
from datadreamer_like.graph.rows import Batch

from ..base.columns import batched
from ..base.lazy_rows import LazyRowBatches
from ..base.options import takes_node_options
from .encodings import plain_suffix
from .file_source import Files
from .text_file_source import TextFileSource

logger = logging.getLogger("datadreamer_like")

# Missing values, as read by pandas and datasets; in a text column they remain texts.
_MISSING_VALUES = frozenset(
    ["NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "#NA", "<NA>", "-nan", "-NaN"]
)
_BOOLEANS = {"True": True, "False": False, "true": True, "false": False, "TRUE": True, "FALSE": False}
_PADDED = re.compile(r"[+-]?0[0-9]")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE)

_OF_TABS = (".tsv", ".tab")
_DIALECT = {"quotechar": '"', "escapechar": None, "doublequote": True, "skipinitialspace": False}


class CSVDataSource(TextFileSource):
    """Rows of CSV files.

    A column is of integers, floats or booleans if all its values are, and of texts otherwise, unchanged. An empty field
    is None (with `keep_default_na=False` an empty text); in a column of numbers or booleans, so are `NA`, `NaN`, `null`
    and similar values. Numbers with leading zeros ("007") are texts, since they are codes.

    Args:
        data_folder: Folder whose `.csv` and `.tsv` files are read, or that `data_files` are relative to.
        data_files: A file, a pattern like `"part-*.csv"`, or a list of them; they must have the same columns. `.gz`,
            `.bz2` and `.xz` are decompressed.
        sep: The field separator, one character. By default a tab for `.tsv` and `.tab` files, a comma for others.
        **config_kwargs: Options of `Step` and of the reader: `encoding` (utf-8), `column_names` or `names` (for files
            without header; with `header=0` they replace it), `header` (0, or None for no header: columns are then
            called 0, 1, ...), `skiprows` (lines to skip at the top), `usecols` (columns to read), `nrows` (maximum
            number of rows), `quotechar`, `escapechar`, `doublequote`, `skipinitialspace`, `dtype` (a type for all
            columns or a dictionary of them: `{"id": int}` makes numbers of "007"), `na_values` (a text that means None,
            or a list of them, besides an empty field) and `keep_default_na`.

    Raises:
        DataError: A file does not exist, cannot be read or is malformed; the message names file and line.
        EmptyDataset: There are no rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".tab")
    example_text: ClassVar[str] = "text,stars\none,1\ntwo,2\n"
    known_options: ClassVar[dict[str, Any]] = {
        "sep": None, "encoding": "utf-8", "column_names": None, "names": None, "header": "infer", "skiprows": 0,
        "usecols": None, "nrows": None, **_DIALECT, "dtype": None, "na_values": (), "keep_default_na": True,
    }  # fmt: skip

    @takes_node_options
    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        sep: str | None = None,
        **config_kwargs: Any,
    ) -> None:
        super().__init__(name, data_folder, data_files, sep=sep, **config_kwargs)

    def configure(self) -> None:
        """Checks the options."""
        super().configure()
        for option, (fits, expected) in _VALUES.items():
            if not fits(self.config[option]):
                raise DefinitionError(f'"{self.name}": {option} is {self.config[option]!r}; expected {expected}.')
        names = self.config["names"] if self.config["column_names"] is None else self.config["column_names"]
        self._names = None if names is None else list(map(str, names))
        sep, marks = self.config["sep"], self.config["na_values"]
        self._separators = {file: sep or ("\t" if plain_suffix(file) in _OF_TABS else ",") for file in self.files}
        for separator in dict.fromkeys(self._separators.values()):
            signs = [sign for sign in (separator, self.config["quotechar"], self.config["escapechar"]) if sign]
            signs += [" "] if self.config["skipinitialspace"] else []
            if len(set(signs)) < len(signs):
                raise DefinitionError(
                    f'"{self.name}": of sep ({separator!r}), quotechar, escapechar and the space of skipinitialspace, '
                    "two are the same character. Set them to different ones."
                )
        # The texts that mean None in every column.
        self._missing = {*([marks] if isinstance(marks, str) else marks or [])}
        self._missing |= {""} if self.config["keep_default_na"] else set()

    @property
    def _dialect(self) -> dict[str, Any]:
        dialect: dict[str, Any] = {option: self.config[option] for option in _DIALECT}
        return {**dialect, "quoting": csv.QUOTE_NONE if dialect["quotechar"] is None else csv.QUOTE_MINIMAL}

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the content of the files and the options; of their names, the separator that they stand for."""
        separators = set(self._separators.values())
        used = separators.pop() if len(separators) == 1 else list(self._separators.values())
        return {**super().fingerprint_values(), "option sep": used}

    def run(self) -> LazyRowBatches:
        """Reads the files twice: first for columns, types and errors, then for the rows."""
        self.register_files()
        columns, has_header = self._header()
        wanted = self._wanted(columns)
        types = self._given_types(wanted)
        fitting = {name: list(_TYPES) for name in wanted if name not in types}
        without_values = set(fitting)
        count = 0
        for batch in self._texts(columns, has_header):
            count += len(next(iter(batch.values())))
            for name, kinds in fitting.items():
                present = kinds and {text.strip() for text in set(batch[name]) - self._missing} - _MISSING_VALUES
                if present:
                    without_values.discard(name)
                    fitting[name] = [kind for kind in kinds if all(map(_TYPES[kind][0], present))]
        for name, kinds in fitting.items():
            types[name] = kinds[0] if kinds and name not in without_values else "str"
        names = self.found_columns(wanted)

        def rows() -> Iterator[Batch]:
            for batch in self._texts(columns, has_header):
                yield {name: self._converted(batch[name], types[name], name) for name in names}

        return LazyRowBatches(rows, total_num_rows=count, save=True)

    def _header(self) -> tuple[list[str], bool]:
        """Returns the names of the columns, and whether the files have a header."""
        if self._names is not None:
            return _distinct_names(self.name, self._names), self.config["header"] == 0
        for file in self.files:
            for _, fields in self._records(file):
                self._check_separator(file, fields)
                if self.config["header"] is None:
                    return list(map(str, range(len(fields)))), False
                return _distinct_names(f"{self.name}: {file}", fields), True
        return [], True

    def _check_separator(self, file: Path, header: list[str]) -> None:
        """Warns if the only field of the first lines looks like several, and no separator was given."""
        if self.config["sep"] is not None or len(header) != 1:
            return
        lines = [fields for _, fields in islice(self._records(file), 20)]
        for sep in ("\t", ";", "|", ","):
            counts = {fields[0].count(sep) if len(fields) == 1 else 0 for fields in lines}
            if len(counts) == 1 and counts.pop():
                logger.warning(
                    "%s: %s has one column, %r, and each line contains %r. If that is the separator, set sep=%r.",
                    self.name, file, header[0], sep, sep,
                )  # fmt: skip

    def _wanted(self, columns: list[str]) -> list[str]:
        usecols = columns if self.config["usecols"] is None else self.config["usecols"]
        wanted = {columns[name] if not isinstance(name, str) and name < len(columns) else str(name) for name in usecols}
        for name in wanted:
            if name not in columns:
                raise UnknownColumn(
                    f'"{self.name}": usecols names the column "{name}"; the files have: {", ".join(columns)}.'
                    f"{did_you_mean(name, columns)}"
                )
        return [name for name in columns if name in wanted]

    def _given_types(self, columns: list[str]) -> dict[str, str]:
        given = self.config["dtype"]
        if given is None:
            return {}
        from pandas.api.types import is_string_dtype, pandas_dtype

        types = {}
        for name, kind in (given if isinstance(given, dict) else dict.fromkeys(columns, given)).items():
            if name not in columns:
                raise UnknownColumn(f'"{self.name}": dtype names the column "{name}"; there are: {", ".join(columns)}.')
            try:
                dtype = pandas_dtype(kind)
                is_other = dtype.kind == "O" and not is_string_dtype(dtype)  # such as "category"
                types[name] = _TYPES_OF_PANDAS["" if is_other else dtype.kind]
            except (TypeError, KeyError) as error:
                raise ArgumentTypeError(
                    f'"{self.name}": dtype of "{name}" is {kind!r}; expected str, int, float or bool.'
                ) from error
        return types

    def _converted(self, texts: list[str], kind: str, name: str) -> list[Any]:
        missing = self._missing
        if kind == "str":
            return [None if text in missing else text for text in texts]
        convert = _TYPES[kind][1]
        plain = [None if text in missing else text.strip() for text in texts]
        try:
            return [None if text is None or text in _MISSING_VALUES else convert(text) for text in plain]
        except (ValueError, KeyError) as error:
            raise DataError(
                f'"{self.name}": column "{name}" has dtype {kind}, but contains other values: {error}.'
            ) from error

    def _texts(self, columns: list[str], has_header: bool) -> Iterator[Batch]:
        """Yields the fields of many rows at once, unchanged."""
        rows = (fields for file in self.files for fields in self._fields(file, columns, has_header))
        for portion in batched(islice(rows, self.config["nrows"]), 10_000):
            yield dict(zip(columns, map(list, zip(*portion, strict=True)), strict=True))

    def _fields(self, file: Path, columns: list[str], has_header: bool) -> Iterator[list[str]]:
        records = self._records(file)
        order: list[int] | None = None
        if has_header:
            _, own = next(records, (0, columns))
            own = own if self._names is None else columns  # the names replace the header
            if sorted(own) != sorted(columns):
                raise DataError(
                    f'"{self.name}": {file} has the columns {", ".join(own)}; {self.files[0]} has '
                    f"{', '.join(columns)}. Make one source for each, or use files with the same columns."
                )
            order = None if own == columns else [own.index(name) for name in columns]
        what = (
            "the header has" if has_header else "the first line has" if self._names is None else "there are names for"
        )
        for line, fields in records:
            if len(fields) != len(columns):
                raise DataError(
                    f'"{self.name}": {file}, line {line} has {len(fields)} fields; {what} {len(columns)}. '
                    f'Quote fields that contain {self._separators[file]!r}, or set the separator, as in sep=";".'
                )
            yield fields if order is None else [fields[place] for place in order]

    def _records(self, file: Path) -> Iterator[tuple[int, list[str]]]:
        """Yields the fields of each record with the number of its first line; empty lines are skipped."""
        csv.field_size_limit(sys.maxsize)  # allows long texts
        skipped = self.config["skiprows"]
        with self.opened(file) as stream:
            for _ in range(skipped):
                stream.readline()
            reader = csv.reader(stream, delimiter=self._separators[file], strict=True, **self._dialect)
            line = skipped + 1
            try:
                for fields in reader:
                    if fields:
                        yield line, fields
                    line = reader.line_num + skipped + 1
            except csv.Error as error:
                what = "a quoted field that starts here is not closed"
                if "unexpected end of data" not in str(error):
                    last = reader.line_num + skipped
                    what = f"{error}" + (f" (in line {last})" if last > line else "")
                raise DataError(
                    f'"{self.name}": {file}, line {line} is malformed: {what}. A quote inside a quoted field is '
                    'written twice: ""; if the file does not use quotes, set quotechar=None.'
                ) from error


def _is_names(value: object) -> bool:
    # A text is not the list of its characters, and the order of a set is not that of columns.
    return value is None or (isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping | Set))


def _is_places(value: object) -> bool:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        return value is None
    known = (isinstance(name, str) or _is_count(name) for name in value)
    return len(value) > 0 and all(known)


def _is_marks(value: object) -> bool:
    if isinstance(value, bytes | Mapping) or not isinstance(value, Collection):
        return value is None
    return all(isinstance(mark, str) for mark in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _is_character(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value) == 1 and value not in "\r\n")


def _is_truth(value: object) -> bool:
    return isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1))


# For options, whether a value fits, and what is expected.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sep": (_is_character, 'one character, like ";" or "\\t"'),
    "header": (
        lambda value: value is None or value == "infer" or (_is_count(value) and value == 0),
        "0, or None for no header",
    ),
    "column_names": (_is_names, 'a list of names, such as ["text", "stars"]'),
    "names": (_is_names, 'a list of names, such as ["text", "stars"]'),
    "usecols": (_is_places, 'a list of names or positions, such as ["text", "stars"] or [0, 2]'),
    "skiprows": (_is_count, "a number of 0 or more"),
    "nrows": (lambda value: value is None or _is_count(value), "a number of 0 or more"),
    "quotechar": (_is_character, "one character, or None if the file does not use quotes"),
    "escapechar": (_is_character, "one character, or None"),
    "doublequote": (_is_truth, "True or False"),
    "skipinitialspace": (_is_truth, "True or False"),
    "keep_default_na": (_is_truth, "True or False"),
    "na_values": (_is_marks, 'a text or a list of texts as in the file, such as ["--", "-999"]'),
}


def _is_whole(text: str) -> bool:
    # Python does not convert more than 4,300 digits. Numbers with leading zeros are identifiers.
    return (
        len(text) < 100
        and not _PADDED.match(text)
        and _WHOLE.fullmatch(text) is not None
        and -(2**63) <= int(text) < 2**63
    )


def _is_decimal(text: str) -> bool:
    # Long integers are identifiers; as floats they would lose digits, and 1e999 would be infinite.
    if _DECIMAL.fullmatch(text) is None or _PADDED.match(text):
        return False
    if _WHOLE.fullmatch(text) is not None:
        return _is_whole(text) and int(float(text)) == int(text)
    return "inf" in text.lower() or abs(float(text)) != float("inf")


# For each type, narrowest first, which texts fit it, and the conversion.
_TYPES: dict[str, tuple[Callable[[str], bool], Callable[[str], Any]]] = {
    "bool": (_BOOLEANS.__contains__, _BOOLEANS.__getitem__),
    "int": (_is_whole, int),
    "float": (_is_decimal, float),
}
_TYPES_OF_PANDAS = {"b": "bool", "i": "int", "f": "float", "U": "str", "O": "str"}


def _distinct_names(what: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f'"{what}": the header has the column "{twice[0]}" twice. Rename one, or set column_names=[...].'
        )
    return names
