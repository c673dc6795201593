"""Locks on keys between processes: many in one small file, which the system releases when their process ends."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from .database import FileKind, explained

_CAN_LOCK = os.name == "posix"
if _CAN_LOCK:
    import fcntl

_KIND = FileKind(0, 1, (), kept="The answers stored before are safe", if_damaged="Move it away.")
# Byte 0 is locked by who has the file open, one of those after the mark by who has a key. They need not exist.
_MARK_BYTES = 8
_FIRST, _OFFSETS = _MARK_BYTES, 1 << 62


class KeyLocks:
    """Locks of this process; the file must be opened once in it. Without locks of byte ranges (Windows) all are free.

    Raises:
        StorageError: The file cannot be opened, written or locked.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._others_came = not _CAN_LOCK
        if not _CAN_LOCK:
            return
        with explained(self.path, "locked", _KIND):
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
            try:
                self._enter()
            except BaseException:
                self._file.close()
                raise

    def _enter(self) -> None:
        descriptor = self._file.fileno()
        if os.fstat(descriptor).st_size < _MARK_BYTES:
            os.ftruncate(descriptor, _MARK_BYTES)
        self._marks = mmap.mmap(descriptor, _MARK_BYTES, access=mmap.ACCESS_READ)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError:
            self._others_came = True
        self._mark = self._marks[:]
        fcntl.lockf(descriptor, fcntl.LOCK_SH, 1, 0)
        if self._others_came:
            # Written once this process can be seen, so that those who are alone notice it before it locks a key.
            os.pwrite(descriptor, os.urandom(_MARK_BYTES), 0)

    @property
    def are_shared(self) -> bool:
        """Whether another process has the file open, or had since this one opened it."""
        self._others_came = self._others_came or self._marks[:] != self._mark
        return self._others_came

    def lock(self, key: bytes) -> bool:
        """Locks a key, unless another process has it; one that this process has stays locked."""
        if not _CAN_LOCK:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self, keys: Iterable[bytes]) -> None:
        """Unlocks keys."""
        if _CAN_LOCK:
            for key in keys:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(key))

    def lock_all(self) -> bool:
        """Locks all keys, unless another process has any."""
        if not _CAN_LOCK:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, _FIRST)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock_all_but(self, keys: Iterable[bytes]) -> None:
        """Unlocks all keys but these, which stay locked meanwhile."""
        if _CAN_LOCK:
            start = _FIRST
            for offset in sorted({_offset(key) for key in keys}):
                if offset > start:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, offset - start, start)
                start = offset + 1
            fcntl.lockf(self._file, fcntl.LOCK_UN, 0, start)

    def close(self) -> None:
        """Unlocks all keys, and closes the file."""
        if _CAN_LOCK:
            self._marks.close()
            self._file.close()


def _offset(key: bytes) -> int:
    # Keys are hashes.
    return _FIRST + int.from_bytes(key[:8], "little") % _OFFSETS
