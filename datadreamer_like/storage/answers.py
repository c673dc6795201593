"""The answer store: answers of models by key, in one SQLite file that survives a kill at any moment.

Answers cost money and time, so none is ever deleted: a damaged file is reported, never replaced. Each value has a
checksum, with its key: a damaged one counts as missing, so it is requested again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Self

from .database import FileKind, connected, explained, explanation, parent_of, prepare

ANSWERS_FORMAT = 2

logger = logging.getLogger("datadreamer_like")

# Keys are hashes, so each insert writes a random page of the index. Small pages reduce the bytes of a transaction; a
# long log merges more writes of a page before it is copied to the file (measured: 2.4 times the rows per second of
# SQLite's defaults, with 32 rows per transaction).
_ANSWERS = FileKind(
    application_id=0x64646C61,  # "ddla" read as a number
    format=ANSWERS_FORMAT,
    # Rows are stored in insertion order; only the small index is written at random positions.
    tables=("CREATE TABLE IF NOT EXISTS answers (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",),
    kept="The answers stored before are safe",
    if_damaged=(
        "The file is damaged. It may hold answers that were paid for, so it is not changed: copy it, save what can be "
        "read with `sqlite3 FILE .recover | sqlite3 NEW_FILE`, and replace it by the new file; or move it away, and "
        "its answers are requested again."
    ),
    pragmas={"page_size": 2_048, "wal_autocheckpoint": 16_000, "cache_size": -32 * 1024},
)
_ROWS_A_STATEMENT = 512
_SUM = 4  # bytes of a checksum


class AnswerStore:
    """A key-value store of bytes in one file that several threads and processes may use concurrently.

    When `put_many` returns, values survive a kill of this process. (As with any database in this mode, a power failure
    may lose the last transactions, but never damages older ones.) The folder of `path` is created; `":memory:"` keeps
    everything in memory, and `""` uses a temporary file that is removed when the store is closed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._lock = self._reading = threading.Lock()
        self.is_file = in_file = self.path not in ("", ":memory:")
        with explained(self.path, "opened", _ANSWERS):
            if in_file:
                parent_of(self.path)
            self._connection = self._reader = connected(self.path)
        try:
            with explained(self.path, "opened", _ANSWERS):
                prepare(self._connection, self.path, _ANSWERS)
                if in_file:
                    # With a connection of its own, a thread that reads does not wait for one that writes.
                    self._reading, self._reader = threading.Lock(), connected(self.path)
        except BaseException:
            self._connection.close()
            raise

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the value of each key; None for a missing key."""
        found: dict[bytes, bytes] = {}
        try:
            with self._reading:
                for start in range(0, len(keys), _ROWS_A_STATEMENT):
                    part = keys[start : start + _ROWS_A_STATEMENT]
                    # Rounding the number of placeholders up keeps the number of different statements small.
                    count = 1 << (len(part) - 1).bit_length()
                    query = f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * count)})"
                    found.update(self._reader.execute(query, [*part, *[part[-1]] * (count - len(part))]))
        except sqlite3.Error as error:
            raise explanation(error, self.path, "read", _ANSWERS) from error
        whole = {key: value[_SUM:] for key, value in found.items() if _is_whole(key, value)}
        if len(whole) < len(found):
            text = "%s is damaged: %s of its answers have a wrong checksum and are requested again"
            logger.warning(text, self.path, f"{len(found) - len(whole):,}")
        return [whole.get(key) for key in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Stores values in one transaction; existing keys get the new value. If it fails, earlier values are safe."""
        rows = [(key, _checksum(key, value) + value) for key, value in items]
        try:
            with self._lock, self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for part in _powers_of_two(rows):
                    # `executemany` would release and take Python's lock for each row, which other threads compete for.
                    places = ",".join(["(?,?)"] * len(part))
                    self._connection.execute(
                        f"INSERT OR REPLACE INTO answers (key, value) VALUES {places}", [*chain(*part)]
                    )
        except sqlite3.Error as error:
            raise explanation(error, self.path, "written", _ANSWERS) from error

    def __len__(self) -> int:
        with self._lock, explained(self.path, "read", _ANSWERS):
            return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Closes the file; the store cannot be used afterwards."""
        for lock, connection in ((self._reading, self._reader), (self._lock, self._connection)):
            with lock:
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _powers_of_two(rows: Sequence[tuple[bytes, bytes]]) -> Iterator[Sequence[tuple[bytes, bytes]]]:
    """Yields parts of rows whose sizes are powers of two, so that there are few different statements."""
    start = 0
    while left := len(rows) - start:
        size = min(_ROWS_A_STATEMENT, 1 << (left.bit_length() - 1))
        yield rows[start : start + size]
        start += size


def _checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(_SUM, "little")


def _is_whole(key: bytes, value: object) -> bool:
    # In a damaged file the value may be of any type.
    return isinstance(value, bytes) and value[:_SUM] == _checksum(key, value[_SUM:])
