"""SQLite files of this package: opening and checking them, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datadreamer_like.errors import NewerFormat, StorageError

CAN_LOCK = os.name == "posix"
"""Whether the system has locks of byte ranges, which Windows has not."""
if CAN_LOCK:
    import fcntl

_BUSY_SECONDS = 60.0
_MOMENT_MS = 200
# The codes of SQLite whose advice fits errors of the system.
_CODES = {errno.ENOSPC: sqlite3.SQLITE_FULL, errno.EDQUOT: sqlite3.SQLITE_FULL, errno.EIO: sqlite3.SQLITE_IOERR}
_ELSE = sqlite3.SQLITE_CANTOPEN
_OF_LOCKS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_IOERR}
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_LOCKS = "Its file system gives no locks on files (now): choose a folder on another one, such as a local disk."


@dataclass(frozen=True)
class FileKind:
    """What a kind of file holds.

    Attributes:
        application_id: Marks the file as ours.
        format: The version of its tables.
        tables: Statements that create them.
        kept: What a user should know after an error: "The answers stored before are safe".
        if_damaged: What to do with a damaged file.
        pragmas: Settings of a connection.
    """

    application_id: int
    format: int
    tables: Sequence[str]
    kept: str
    if_damaged: str
    pragmas: Mapping[str, int | str] = field(default_factory=dict)


def connected(path: str) -> sqlite3.Connection:
    """Returns a connection that threads may share under a lock; it waits for other processes.

    `with connection:` commits what the block writes after `BEGIN IMMEDIATE`, all of it or nothing.
    """
    return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def prepare(connection: sqlite3.Connection, path: str, kind: FileKind) -> None:
    """Creates the tables, or checks that the file is of this kind and in a format that this version reads."""
    # SQLite waits for most locks by itself, but not while another process enables the log; and not if there are none.
    until = time.monotonic() + _BUSY_SECONDS
    connection.execute(f"PRAGMA busy_timeout = {_MOMENT_MS}")
    while True:
        try:
            _prepare(connection, path, kind)
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until or _lacks_locks(path):
                raise
            time.sleep(0.01)
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000:.0f}")


def _prepare(connection: sqlite3.Connection, path: str, kind: FileKind) -> None:
    ask = connection.execute
    found = int(ask("PRAGMA user_version").fetchone()[0])
    NewerFormat.check(path, found, kind.format)
    if 0 < found < kind.format:
        raise StorageError(f"{path} was written by a development version in another format. Move it away.")
    for name, value in {**kind.pragmas, "journal_mode": "WAL", "synchronous": "NORMAL"}.items():
        ask(f"PRAGMA {name} = {value}")
    if found == kind.format:
        return
    with connection:
        ask("BEGIN IMMEDIATE")
        tables = ask("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and not int(ask("PRAGMA user_version").fetchone()[0]):
            raise StorageError(f"{path} is a database of another program. Use another folder.")
        for table in kind.tables:
            ask(table)
        ask(f"PRAGMA application_id = {kind.application_id}")
        ask(f"PRAGMA user_version = {kind.format}")


@contextmanager
def explained(path: str, done: str, kind: FileKind) -> Iterator[None]:
    """Turns errors of SQLite and of the system inside the block into `StorageError`; `done` is such as "written"."""
    try:
        yield
    except sqlite3.Error as error:
        raise explanation(error, path, done, kind) from error
    except StorageError:
        raise
    except OSError as error:
        advice = _NO_LOCKS if error.errno in _WITHOUT_LOCKS else _advice(_CODES.get(error.errno or 0, _ELSE), kind)
        raise StorageError(f"{path} cannot be {done}: {error.strerror}. {advice}") from error


def explanation(error: sqlite3.Error, path: str, done: str, kind: FileKind) -> StorageError:
    """Returns the error of this package for one of SQLite, with what to do."""
    code = int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the low byte is the primary code
    if "decode" in str(error) or "no such" in str(error):  # bytes that are not UTF-8; a table or column is gone
        code = sqlite3.SQLITE_CORRUPT
    advice = _NO_LOCKS if code in _OF_LOCKS and _lacks_locks(path) else _advice(code, kind)
    return StorageError(f"{path} cannot be {done}: {error}. {advice or f'{kind.kept}; run again.'}")


def _lacks_locks(path: str) -> bool:
    """Whether the file system refuses all locks, of which SQLite only says that the file is locked."""
    if not CAN_LOCK:
        return False
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _WITHOUT_LOCKS
    return False


def parent_of(path: str) -> None:
    """Creates the folder of a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def _advice(code: int, kind: FileKind) -> str | None:
    not_writable = "Choose a folder that you may write to, or change its permissions."
    busy = "Another process has been writing to it for a minute. Wait for that process to end, and run again."
    return {
        sqlite3.SQLITE_FULL: f"No space is left. {kind.kept}. Free some space and run again: it continues.",
        sqlite3.SQLITE_IOERR: (
            "Writing failed: the disk may be full, or a quota or file size limit reached. "
            f"{kind.kept}. Free some space and run again: it continues."
        ),
        sqlite3.SQLITE_READONLY: not_writable,
        sqlite3.SQLITE_PERM: not_writable,
        sqlite3.SQLITE_CANTOPEN: "Check that its folder exists and that you may write to it.",
        sqlite3.SQLITE_BUSY: busy,
        sqlite3.SQLITE_LOCKED: busy,
        sqlite3.SQLITE_CORRUPT: kind.if_damaged,
        sqlite3.SQLITE_NOTADB: kind.if_damaged,
    }.get(code)
