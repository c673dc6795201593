"""The answer store: answers of models by key, in one SQLite file that survives a kill at any moment.

Answers cost money and time, so none is ever deleted: a damaged file is reported, never replaced. Each value has a
checksum, with its key: a damaged one counts as missing, so it is requested again. Runs that share a store, in
one process or several, do not ask for the same answer at the same time (`Claims`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Self

from .database import CAN_LOCK, FileKind, connected, explained, explanation, parent_of, prepare
from .key_locks import KeyLocks, is_at

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


# Another process's request ends without a notice.
_LOOK_AGAIN_SECONDS = 0.1


class _Together:
    """The runs of this process that are under way and share stored answers.

    `file` is that of the answers, whose `locks` other processes see; None if they are in memory, or on Windows. A
    process that is alone takes all keys at once, as a lock for each takes a fifth of the time of a row whose answer
    comes at once, and keeps only those that are claimed when another process comes.
    """

    def __init__(self, file: str | None) -> None:
        self.locks = self._opened = None
        if file is not None:
            self.locks = KeyLocks(f"{file}.locks")
            self._file, self._opened = file, os.stat(file)
        self.runs: list[Claims] = []
        self._was_alone = self.locks is not None
        self._has_all = self.locks is None

    def is_alone(self) -> bool:
        """Whether no other process may claim a key now; if not, `lock` is due for each, after this."""
        if self._was_alone and self.locks is not None:
            with _claims_lock:
                if self._was_alone:
                    self._has_all = not self.locks.others_came and self.locks.lock_all()
                    self._was_alone = False
        return self._has_all

    def share(self) -> None:
        """Lets other processes have what is not claimed, if one came; `_claims_lock` is held."""
        if self.locks is None or self._is_removed():
            return
        if self.locks.renew() or (self._has_all and self.locks.another_came()):
            # A claim that is made meanwhile sees this, or is seen below.
            self._has_all = False
            held = [key for run in self.runs for key in list(run.held)]
            for key in held:
                self.locks.lock(key)
            self.locks.unlock_all_but(held)

    def _is_removed(self) -> bool:
        """Whether the file of answers is another one now; warns once."""
        if self._opened is not None and not is_at(self._file, self._opened):
            self._opened = None
            text = (
                "%s was deleted or moved while a run stores answers in it. The run goes on, but its answers will not "
                "be found again: do not clean a folder in which a script runs."
            )
            logger.warning(text, self._file)
        return self._opened is None

    def lock(self, key: bytes) -> bool:
        """Locks a key, unless another process has it; `_claims_lock` is held."""
        return self._has_all or self.locks is None or self.locks.lock(key)

    def unlock(self, keys: Sequence[bytes]) -> None:
        """Unlocks keys; `_claims_lock` is held."""
        if self.locks is not None and not self._has_all:
            self.locks.unlock(keys)


_claims_lock = threading.Lock()
_all: dict[Hashable, _Together] = {}


def _forget_in_child() -> None:
    # The runs and the locks are the parent's. Its files are closed now: closed later, they would release the locks that
    # the child has by then.
    global _claims_lock
    _claims_lock = threading.Lock()
    for together in _all.values():
        if together.locks is not None:
            together.locks.close()
    _all.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_in_child)


class Claims:
    """What one run is asking for. A run that wants the same answer waits until this one has stored it, or failed.

    A claim is held while a request is in flight, not while it waits for another try, and `close` gives up all of them.
    So no run waits for one that does nothing; claims of a process that is killed are free at once. Its methods may be
    called in any thread.

    Raises:
        StorageError: The file of locks next to that of the answers cannot be used.
    """

    def __init__(self, store: AnswerStore) -> None:
        self._shared: Hashable = os.path.realpath(store.path) if store.is_file else id(store)
        # A list if runs wait for the key.
        self.held: dict[bytes, list[Callable[[], None]] | None] = {}
        self._has_company = False
        with _claims_lock:
            if self._shared not in _all:
                _all[self._shared] = _Together(str(self._shared) if store.is_file and CAN_LOCK else None)
            self._together = _all[self._shared]
            self._runs = self._together.runs
            self._runs.append(self)
            if len(self._runs) > 1:
                for run in self._runs:
                    run._has_company = True

    def take(self, key: bytes) -> bool:
        """Claims a key; returns False if another run has it, or may have stored its answer, so that `wait` is due."""
        # Another run that begins now sees this, or is seen below.
        self.held[key] = None
        if self._has_company:
            return False
        return self._together.is_alone()

    def let_others_in(self) -> None:
        """Lets a process that came meanwhile claim what no run of this one does; due now and then."""
        with _claims_lock:
            self._together.share()

    def wait(self, key: bytes, when_free: Callable[[], None]) -> float | None:
        """Claims a key after `take`, and returns None; otherwise in how many seconds it is to be called again.

        It is also to be called again if `when_free` is called, by a run of this process.
        """
        after: float | None = None
        with _claims_lock:
            others = [run for run in self._runs if run is not self and key in run.held]
            if others:
                others[0].held[key] = [*(others[0].held[key] or ()), when_free]
                after = float("inf")
            elif not self._together.lock(key):
                after = _LOOK_AGAIN_SECONDS
            else:
                self.held.setdefault(key, None)
        if after is not None:
            self.give_up([key])
        return after

    def give_up(self, keys: Iterable[bytes]) -> None:
        """Lets other runs have keys whose answers are stored, or failed for now; keys that are not held are skipped."""
        waiting: list[Callable[[], None]] = []
        free = []
        with _claims_lock:
            for key in keys:
                if key in self.held:
                    waiting += self.held.pop(key) or ()
                    if len(self._runs) == 1 or not any(key in run.held for run in self._runs):
                        free.append(key)
            if free:
                self._together.unlock(free)
        for when_free in waiting:
            when_free()

    def close(self) -> None:
        """Gives up all claims, at the end of the run."""
        self.give_up(list(self.held))
        with _claims_lock:
            if self in self._runs:
                self._runs.remove(self)
                if not self._runs:
                    _all.pop(self._shared, None)
                    if self._together.locks is not None:
                        self._together.locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
