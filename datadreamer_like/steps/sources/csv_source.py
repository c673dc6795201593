"""The source for CSV files: column types from all rows, errors with line numbers."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, UnknownColumn, did_you_mean
from datadreamer_like.graph.output import Batch

from ..base.lazy_rows import LazyRowBatches
from .file_source import Files, FileSource

_ROWS_AT_ONCE = 10_000

# Missing values, as read by pandas and datasets; in a text column they remain texts.
_MISSING_VALUES = frozenset(
    {"NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "#NA", "<NA>", "-nan", "-NaN"}
)
_BOOLEANS = {"True": True, "False": False, "true": True, "false": False, "TRUE": True, "FALSE": False}
_TYPES: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "str"}
_CONVERT: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": _BOOLEANS.__getitem__}
_NAMES_OF_TYPES = {"int64": "int", "float64": "float", "string": "str", "object": "str", "boolean": "bool"}


class CSVDataSource(FileSource):
    """Rows of CSV files.

    A column is of integers, floats or booleans if all its values are, and of texts otherwise, unchanged. An empty field
    is None (with `keep_default_na=False` an empty text); in a column of numbers or booleans, so are `NA`, `NaN`, `null`
    and similar values.

    Args:
        name: Name of the step.
        data_folder: Folder whose `.csv` and `.tsv` files are read, or that `data_files` are relative to.
        data_files: A file, a pattern like `"part-*.csv"`, or a list of them; they must have the same columns. `.gz`,
            `.bz2` and `.xz` are decompressed.
        sep: The field separator, one character.
        **config_kwargs: Options of `Step` and of the reader: `encoding` (utf-8), `column_names` or `names` (for files
            without header), `header` (0, or None for no header: columns are then called 0, 1, ...), `skiprows` (lines
            to skip at the top), `usecols` (columns to read), `nrows` (maximum number of rows), `quotechar`,
            `escapechar`, `doublequote`, `skipinitialspace`, `dtype` (a type for all columns or a dictionary of them:
            `{"id": str}` keeps leading zeros), `na_values` (more texts that mean None) and `keep_default_na`.

    Raises:
        DataError: A file does not exist, cannot be read or is malformed; the message names file and line.
        EmptyDataset: There are no rows.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")
    known_options: ClassVar[dict[str, Any]] = {
        "encoding": "utf-8",
        "column_names": None,
        "names": None,
        "header": "infer",
        "skiprows": 0,
        "usecols": None,
        "nrows": None,
        "quotechar": '"',
        "escapechar": None,
        "doublequote": True,
        "skipinitialspace": False,
        "dtype": None,
        "na_values": (),
        "keep_default_na": True,
    }

    def __init__(
        self,
        name: str,
        data_folder: str | os.PathLike[str] | None = None,
        data_files: Files | None = None,
        sep: str = ",",
        **config_kwargs: Any,
    ) -> None:
        if not isinstance(sep, str) or len(sep) != 1:
            raise DefinitionError(f'"{name}": sep is {sep!r}; expected one character, like ";" or "\\t".')
        self.sep = sep
        if config_kwargs.get("header", "infer") not in ("infer", 0, None):
            raise DefinitionError(
                f'"{name}": header is {config_kwargs["header"]!r}; expected 0, or None for no header.'
            )
        for option in ("skiprows", "nrows"):
            value = config_kwargs.get(option, 0)
            if not (isinstance(value, int) and value >= 0) and not (option == "nrows" and value is None):
                raise DefinitionError(f'"{name}": {option} is {value!r}; expected a number of 0 or more.')
        super().__init__(name, data_folder, data_files, config_kwargs)

    @classmethod
    def example(cls, folder: Path) -> dict[str, Any]:
        """Returns the smallest arguments with which the step does something, for tests and documentation."""
        (folder / "texts.csv").write_text("text,stars\none,1\ntwo,2\n", encoding="utf-8")
        return {"data_files": folder / "texts.csv"}

    def fingerprint_values(self) -> dict[str, Any]:
        """Returns the content of the files, the separator and the options."""
        return {**super().fingerprint_values(), "sep": self.sep}

    def run(self) -> LazyRowBatches:
        """Reads the files twice: first for columns, types and errors, then for the rows."""
        self.register_files()
        columns, header_of = self._header()
        wanted = self._wanted(columns)
        types = self._given_types(wanted)
        guesses = {name: _Guess(self._missing) for name in wanted if name not in types}
        count = 0
        for batch in self._texts(columns, header_of):
            count += len(next(iter(batch.values())))
            for name, guess in guesses.items():
                guess.see(batch[name])
        types |= {name: guess.kind for name, guess in guesses.items()}
        names = self.found_columns(wanted)
        return LazyRowBatches(
            lambda: self._typed(columns, header_of, {name: types[name] for name in names}),
            total_num_rows=count,
            save=True,
        )

    # Columns and types

    def _header(self) -> tuple[list[str], bool]:
        """Returns the names of the columns, and whether the files have a header."""
        names = self.config["column_names"] if self.config["column_names"] is not None else self.config["names"]
        if names is not None:
            return _distinct_names(self.name, [str(name) for name in names]), False
        for file in self.files:
            first = next(self._records(file), None)
            if first is None:
                continue
            if self.config["header"] is None:
                return [str(index) for index in range(len(first[1]))], False
            return _distinct_names(f"{self.name}: {file}", first[1]), True
        return [], True

    def _wanted(self, columns: list[str]) -> list[str]:
        usecols: Sequence[str | int] | None = self.config["usecols"]
        if usecols is None:
            return columns
        wanted = {columns[name] if isinstance(name, int) and name < len(columns) else str(name) for name in usecols}
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
        by_name = given if isinstance(given, dict) else dict.fromkeys(columns, given)
        types = {}
        for name, kind in by_name.items():
            if name not in columns:
                raise UnknownColumn(f'"{self.name}": dtype names the column "{name}"; there are: {", ".join(columns)}.')
            text = str(kind)
            types[name] = _TYPES.get(kind) or _NAMES_OF_TYPES.get(text, text)
            if types[name] not in _TYPES.values():
                raise ArgumentTypeError(
                    f'"{self.name}": dtype of "{name}" is {kind!r}; expected str, int, float or bool.'
                )
        return types

    @property
    def _missing(self) -> frozenset[str]:
        """The texts that mean None in every column."""
        return frozenset(
            {"", *self.config["na_values"]} if self.config["keep_default_na"] else self.config["na_values"]
        )

    # Reading

    def _typed(self, columns: list[str], header: bool, types: dict[str, str]) -> Iterator[Batch]:
        for batch in self._texts(columns, header):
            yield {name: self._converted(batch[name], kind, name) for name, kind in types.items()}

    def _converted(self, texts: list[str], kind: str, name: str) -> list[Any]:
        missing = self._missing
        if kind == "str":
            return [None if text in missing else text for text in texts]
        convert = _CONVERT[kind]
        plain = [None if text in missing else text.strip() for text in texts]
        try:
            return [None if text is None or text in _MISSING_VALUES else convert(text) for text in plain]
        except (ValueError, KeyError) as error:
            raise self._misfit(name, kind, str(error)) from error

    def _misfit(self, name: str, kind: str, what: str) -> DataError:
        return DataError(f'"{self.name}": column "{name}" has dtype {kind}, but contains other values: {what}.')

    def _texts(self, columns: list[str], header: bool) -> Iterator[dict[str, list[str]]]:
        """Yields the fields of many rows at once, unchanged."""
        rows = (fields for file in self.files for fields in self._fields(file, columns, header))
        if self.config["nrows"] is not None:
            rows = islice(rows, self.config["nrows"])  # type: ignore[assignment]
        while portion := list(islice(rows, _ROWS_AT_ONCE)):
            yield dict(zip(columns, map(list, zip(*portion, strict=True)), strict=True))

    def _fields(self, file: Path, columns: list[str], header: bool) -> Iterator[list[str]]:
        records = self._records(file)
        order: list[int] | None = None
        if header:
            _, own = next(records, (0, columns))
            if own != columns:
                if sorted(own) != sorted(columns):
                    raise DataError(
                        f'"{self.name}": {file} has the columns {", ".join(own)}; {self.files[0]} has '
                        f"{', '.join(columns)}. Make one source for each, or use files with the same columns."
                    )
                order = [own.index(name) for name in columns]
        width = len(columns)
        what = "the header has" if header else "there are names for" if self._is_named else "the first line has"
        for line, fields in records:
            if len(fields) != width:
                raise DataError(
                    f'"{self.name}": {file}, line {line} has {len(fields)} fields; {what} {width}. '
                    f'Quote fields that contain "{self.sep}", or set the separator, as in sep=";".'
                )
            yield fields if order is None else [fields[place] for place in order]

    @property
    def _is_named(self) -> bool:
        return self.config["column_names"] is not None or self.config["names"] is not None

    def _records(self, file: Path) -> Iterator[tuple[int, list[str]]]:
        """Yields the fields of each record with the number of its first line; empty lines are skipped."""
        csv.field_size_limit(sys.maxsize)  # allows long texts
        skipped = self.config["skiprows"]
        with self.opened(file) as stream:
            for _ in range(skipped):
                stream.readline()
            reader = csv.reader(
                stream,
                delimiter=self.sep,
                quotechar=self.config["quotechar"],
                escapechar=self.config["escapechar"],
                doublequote=self.config["doublequote"],
                skipinitialspace=self.config["skipinitialspace"],
                quoting=csv.QUOTE_NONE if self.config["quotechar"] is None else csv.QUOTE_MINIMAL,
                strict=True,
            )
            while True:
                line = reader.line_num + skipped + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    raise self._malformed(file, line, reader.line_num + skipped, error) from error
                if fields is None:
                    return
                if fields:
                    yield line, fields

    def _malformed(self, file: Path, line: int, last: int, error: csv.Error) -> DataError:
        if "unexpected end of data" in str(error):
            what = "a quoted field that starts here is not closed"
        else:
            what = f"{error}" + (f" (in line {last})" if last > line else "")
        return DataError(
            f'"{self.name}": {file}, line {line} is malformed: {what}. A quote inside a quoted field is written twice: '
            '""; if the file does not use quotes, set quotechar=None.'
        )


class _Guess:
    """The narrowest type that fits all values of a column seen so far."""

    def __init__(self, missing: frozenset[str]) -> None:
        self._missing = missing
        self._fitting = ["bool", "int", "float"]
        self._seen = False

    @property
    def kind(self) -> str:
        """The type."""
        return self._fitting[0] if self._fitting and self._seen else "str"

    def see(self, texts: list[str]) -> None:
        """Drops the types that do not fit some of the texts."""
        if not self._fitting:
            return
        present = {text.strip() for text in set(texts) - self._missing} - _MISSING_VALUES
        if present:
            self._seen = True
            self._fitting = [kind for kind in self._fitting if all(map(_FITS[kind], present))]


def _is_whole(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


def _is_decimal(text: str) -> bool:
    # Integers beyond 64 bits are identifiers; as floats they would lose digits.
    return _DECIMAL.fullmatch(text) is not None and (_WHOLE.fullmatch(text) is None or _is_whole(text))


_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
_FITS: dict[str, Callable[[str], bool]] = {"bool": _BOOLEANS.__contains__, "int": _is_whole, "float": _is_decimal}


def _distinct_names(what: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f'"{what}": the header has the column "{twice[0]}" twice. Rename one, or set column_names=[...].'
        )
    return names
