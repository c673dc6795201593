"""Signals of rows in flat files that are mapped into memory: found again by the rows' digests, complete or absent.

A folder has one file for each column, one of keys and one of lengths, and `signals.json` with their checksums up to the
last chunk that was written. What a killed process wrote after it is cut off by the next one. Only one process at a time
adds rows; others wait, and find them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datadreamer_like.errors import NewerFormat, StorageError
from datadreamer_like.storage.folders import explained, flush, locked, write_file
from datadreamer_like.storage.seals import SEAL_NAME, damaged_file, read_sealed, sealed

from .signals import Array, Columns

logger = logging.getLogger("datadreamer_like")

FORMAT = 1
KEY_BYTES = 16

_STATE = "signals.json"
_KEYS, _LENGTHS = "keys.bin", "lengths.bin"
_CHUNK_BYTES = 8 << 20
_CHUNK_SECONDS = 10.0

Part = Sequence[tuple[int, Columns]]
"""Rows that a model read together: their positions and signals."""
Ask = Callable[[Sequence[int]], Iterable[Part]]
"""Yields the signals of the rows at some positions, in any order, one part after another."""


def row_key(row: Mapping[str, Any], names: Iterable[str]) -> bytes:
    """Returns the key of a row of token ids: a digest of the fields that decide what a model gives for it."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in names:
        ids = np.asarray(row[name], dtype=np.int32)
        digest.update(f"{name} {len(ids)} ".encode())
        digest.update(ids.tobytes())
    return digest.digest()


class SignalStore:
    """What one model, such as a teacher, gives rows, in a folder that processes may share.

    Everything else that decides the signals must be part of the folder's name, which the caller chooses; `what` names
    them in messages.
    """

    def __init__(self, folder: Path, what: str = "the teacher's signals") -> None:
        self.folder, self._what = folder, what

    def collect(self, keys: Sequence[bytes], ask: Ask) -> StoredSignals:
        """Returns the signals of rows by their keys, after asking for those that are missing.

        Each key is asked for once, and signals are written in chunks of a few megabytes, or of ten seconds: a killed
        process loses at most one. A chunk has whole parts, as a model's numbers depend on the rows that it reads
        together: if what is left falls into the same parts, a killed process changes nothing. Raises `StorageError` if
        they cannot be written.
        """
        problem = f"{self._what[0].upper()}{self._what[1:]} cannot be stored"
        with explained(problem, self.folder, everything=True):
            self.folder.mkdir(parents=True, exist_ok=True)
        with explained(problem, self.folder), locked(self.folder / "lock", f"storing {self._what}"):
            files = self._opened()
            places = files.places()
            missing = {key: row for row, key in reversed([*enumerate(keys)]) if key not in places}
            waiting: list[tuple[bytes, Columns]] = []
            size, written = 0, time.monotonic()
            for part in ask(sorted(missing.values())) if missing else ():
                waiting += [(keys[row], columns) for row, columns in part]
                size += sum(column.nbytes for _, columns in part for column in columns.values())
                if size >= _CHUNK_BYTES or time.monotonic() > written + _CHUNK_SECONDS:
                    files.append(waiting)
                    waiting, size, written = [], 0, time.monotonic()
            if waiting:
                files.append(waiting)
            if missing:
                places = files.places()
            found = np.asarray([places[key] for key in keys], dtype=np.int64)
        return StoredSignals(files, found)

    def _opened(self) -> _Files:
        try:
            return _Files.opened(self.folder)
        except NewerFormat:
            raise
        except StorageError as error:
            logger.warning("%s: %s are made again for all rows", error, self._what)
        # Another process may still read the old files, so they are removed, not cut.
        for file in self.folder.iterdir():
            if file.suffix in (".bin", ".json") or file.name == SEAL_NAME:
                file.unlink()
        return _Files.opened(self.folder)


class _Files:
    """The files of a store: columns by name, their types, and size and checksum of each file."""

    def __init__(self, folder: Path, types: dict[str, str], rows: int, sums: dict[str, tuple[int, int]]) -> None:
        self.folder, self.types, self.rows, self.sums = folder, types, rows, sums

    @classmethod
    def opened(cls, folder: Path) -> _Files:
        """Reads the state of a folder and cuts off what was written after it; raises `StorageError` if damaged."""
        state = folder / _STATE
        if not state.exists():
            return cls(folder, {}, 0, {})
        content = read_sealed(state)
        NewerFormat.check(str(state), int(content["format"]), FORMAT)
        sums = {name: (int(size), int(crc)) for name, (size, crc) in content["files"].items()}
        for name, (size, _) in sums.items():
            if (folder / name).exists() and (folder / name).stat().st_size > size:
                os.truncate(folder / name, size)
        if damage := damaged_file(folder, {name: f"{size}:{crc:08x}" for name, (size, crc) in sums.items()}):
            raise StorageError(damage)
        return cls(folder, dict(content["columns"]), int(content["rows"]), sums)

    def append(self, rows: Sequence[tuple[bytes, Columns]]) -> None:
        """Adds rows; when it returns they survive a kill."""
        first = rows[0][1]
        self.types = self.types or {name: column.dtype.str for name, column in first.items()}
        lengths = np.asarray([[len(columns[name]) for name in self.types] for _, columns in rows], dtype=np.int64)
        parts = {_KEYS: b"".join(key for key, _ in rows), _LENGTHS: lengths.tobytes()}
        for name, kind in self.types.items():
            parts[f"{name}.bin"] = np.concatenate([columns[name] for _, columns in rows]).astype(kind).tobytes()
        sums = dict(self.sums)
        for name, part in parts.items():
            size, crc = sums.get(name, (0, 0))
            with (self.folder / name).open("r+b" if size else "wb") as file:
                file.seek(size)
                file.write(part)
            sums[name] = (size + len(part), zlib.crc32(part, crc))
        flush(*(self.folder / name for name in parts))
        content = {"format": FORMAT, "columns": self.types, "rows": self.rows + len(rows), "files": sums}
        write_file(self.folder / _STATE, sealed(content))
        self.rows, self.sums = self.rows + len(rows), sums

    def read(self, name: str, kind: str) -> Array:
        """Returns the content of a file, mapped into memory."""
        size, _ = self.sums.get(name, (0, 0))
        if not size:  # an empty file cannot be mapped
            return np.zeros(0, dtype=kind)
        return np.memmap(self.folder / name, dtype=kind, mode="r", shape=(size // np.dtype(kind).itemsize,))

    def places(self) -> dict[bytes, int]:
        """Returns the place of each key among the rows."""
        text = self.read(_KEYS, "u1").tobytes()
        return {text[place * KEY_BYTES : (place + 1) * KEY_BYTES]: place for place in range(self.rows)}

    def starts(self) -> Array:
        """Returns where each row starts in each column, and where the last one ends [rows + 1, columns]."""
        lengths = self.read(_LENGTHS, "<i8").reshape(-1, max(1, len(self.types)))
        return np.concatenate([np.zeros((1, lengths.shape[1]), dtype=np.int64), lengths.cumsum(0)])


class StoredSignals:
    """The signals of a dataset's rows, read from mapped files."""

    def __init__(self, files: _Files, places: Array) -> None:
        self._files, self._places = files, places
        self._columns = {name: files.read(f"{name}.bin", kind) for name, kind in files.types.items()}
        starts = files.starts()
        self._starts, self._ends = starts[:-1][places].T, starts[1:][places].T

    def __reduce__(self) -> tuple[type[StoredSignals], tuple[_Files, Array]]:
        return StoredSignals, (self._files, self._places)  # another process maps the files too

    def batch(self, rows: Sequence[int]) -> dict[str, Array]:
        """Returns the columns of some rows, one row after another."""
        found = {}
        for index, (name, column) in enumerate(self._columns.items()):
            starts, ends = self._starts[index], self._ends[index]
            found[name] = np.concatenate([column[starts[row] : ends[row]] for row in rows])
        return found

    def total(self, name: str) -> int:
        """Returns the sum of a column; rows that share signals count once."""
        index = [*self._columns].index(name)
        spans = {*zip(self._starts[index].tolist(), self._ends[index].tolist(), strict=True)}
        return sum(int(self._columns[name][start:end].sum(dtype=np.int64)) for start, end in spans)

    def num_bytes(self) -> int:
        """Returns the bytes of all rows, with their keys and lengths; rows that share signals count once."""
        _, first = np.unique(self._places, return_index=True)
        sizes = self._ends[:, first] - self._starts[:, first]
        widths = [column.itemsize for column in self._columns.values()]
        values = sum(int(size.sum()) * width for size, width in zip(sizes, widths, strict=True))
        return values + len(first) * (KEY_BYTES + 8 * len(widths))
