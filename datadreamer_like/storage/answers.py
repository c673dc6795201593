"""The answer store: answers of models by key, in one SQLite file that survives a kill at any moment.

Answers cost money and time, so none is ever deleted: a damaged file is reported, never replaced. Each value has a
checksum, with its key: a damaged one counts as missing, so it is requested again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Self

from datadreamer_like.errors import NewerFormat, StorageError

ANSWERS_FORMAT = 2

logger = logging.getLogger("datadreamer_like")

# Marks the file as ours: "ddla" read as a number.
_APPLICATION_ID = 0x64646C61
_BUSY_SECONDS = 60.0
# Keys are hashes, so each insert writes a random page of the index. Small pages reduce the bytes of a transaction; a
# long log merges more writes of a page before it is copied to the file (measured: 2.4 times the rows per second of
# SQLite's defaults, with 32 rows per transaction).
_PAGE_BYTES = 2_048
_CHECKPOINT_PAGES = 16_000
_CACHE_KIB = 32 * 1024
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
        in_file = self.path not in ("", ":memory:")
        with self._explained("opened"):
            if in_file:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._reader = self._connected()
        try:
            with self._explained("opened"):
                self._prepare_patiently()
                if in_file:
                    # With a connection of its own, a thread that reads does not wait for one that writes.
                    self._reading, self._reader = threading.Lock(), self._connected()
        except BaseException:
            self._connection.close()
            raise

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the value of each key; None for a missing key."""
        found: dict[bytes, bytes] = {}
        with self._reading, self._explained("read"):
            for start in range(0, len(keys), _ROWS_A_STATEMENT):
                part = keys[start : start + _ROWS_A_STATEMENT]
                # Rounding the number of placeholders up keeps the number of different statements small.
                count = 1 << (len(part) - 1).bit_length()
                query = f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * count)})"
                found.update(self._reader.execute(query, [*part, *[part[-1]] * (count - len(part))]))
        whole = {key: value[_SUM:] for key, value in found.items() if _is_whole(key, value)}
        if len(whole) < len(found):
            text = "%s is damaged: %s of its answers have a wrong checksum and are requested again"
            logger.warning(text, self.path, f"{len(found) - len(whole):,}")
        return [whole.get(key) for key in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Stores values in one transaction; existing keys get the new value. If it fails, earlier values are safe."""
        rows = [(key, _checksum(key, value) + value) for key, value in items]
        with self._lock, self._explained("written"), self._transaction():
            for part in _powers_of_two(rows):
                # `executemany` would release and take Python's lock for each row, which other threads compete for.
                places = ",".join(["(?,?)"] * len(part))
                self._connection.execute(
                    f"INSERT OR REPLACE INTO answers (key, value) VALUES {places}", [*chain(*part)]
                )

    def __len__(self) -> int:
        with self._lock, self._explained("read"):
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

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def _prepare_patiently(self) -> None:
        # SQLite waits for most locks by itself, but not while another process enables the log.
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _prepare(self) -> None:
        ask = self._connection.execute
        found = int(ask("PRAGMA user_version").fetchone()[0])
        NewerFormat.check(self.path, found, ANSWERS_FORMAT)
        if 0 < found < ANSWERS_FORMAT:
            raise StorageError(f"{self.path} was written by a development version in another format. Move it away.")
        ask(f"PRAGMA page_size = {_PAGE_BYTES}")
        ask("PRAGMA journal_mode = WAL")
        ask("PRAGMA synchronous = NORMAL")
        ask(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        ask(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if found == ANSWERS_FORMAT:
            return
        with self._transaction():
            tables = ask("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and not int(ask("PRAGMA user_version").fetchone()[0]):
                raise StorageError(f"{self.path} is a database of another program. Use another folder.")
            # Rows are stored in insertion order; only the small index is written at random positions.
            ask("CREATE TABLE IF NOT EXISTS answers (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)")
            ask(f"PRAGMA application_id = {_APPLICATION_ID}")
            ask(f"PRAGMA user_version = {ANSWERS_FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            advice = _ADVICE.get(_code(error), "The answers stored before are safe; run again.")
            raise StorageError(f"{self.path} cannot be {done}: {error}. {advice}") from error
        except StorageError:
            raise
        except OSError as error:
            advice = _ADVICE[sqlite3.SQLITE_CANTOPEN]
            raise StorageError(f"{self.path} cannot be {done}: {error.strerror}. {advice}") from error


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


def _code(error: sqlite3.Error) -> int:
    # The low byte of an extended code is the primary code.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


_NOT_WRITABLE = "Choose a folder that you may write to, or change its permissions."
_BUSY = "Another process has been writing to it for a minute. Wait for that process to end, and run again."
_DAMAGED = (
    "The file is damaged. It may hold answers that were paid for, so it is not changed: copy it, save what can be read "
    "with `sqlite3 FILE .recover | sqlite3 NEW_FILE`, and replace it by the new file; or move it away, and its answers "
    "are requested again."
)
_ADVICE = {
    sqlite3.SQLITE_FULL: (
        "No space is left; the answers stored before are safe. Free some space and run again: it continues."
    ),
    sqlite3.SQLITE_IOERR: (
        "Writing failed: the disk may be full, or a quota or file size limit reached. The answers stored before are "
        "safe. Free some space and run again: it continues."
    ),
    sqlite3.SQLITE_READONLY: _NOT_WRITABLE,
    sqlite3.SQLITE_PERM: _NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: "Check that its folder exists and that you may write to it.",
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
