"""Locks on keys between processes: many in one small file, which the system releases when their process ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import BinaryIO

from .database import CAN_LOCK, FileKind, explained

if CAN_LOCK:
    import fcntl

_KIND = FileKind(0, 1, (), kept="The answers stored before are safe", if_damaged="Move it away.")
# Byte 0 is locked by who has the file open, one of those after the mark by who has a key. They need not exist.
_MARK_BYTES = 8
_FIRST, _OFFSETS = _MARK_BYTES, 1 << 62


class KeyLocks:
    """Locks of this process; the file must be opened once in it.

    Attributes:
        others_came: Whether another process had the file open when this one opened it.

    Raises:
        StorageError: The file cannot be opened, written or locked; raised by every method.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.others_came = False
        # A second one is the file before it was removed, where others have locks until they `renew`, too.
        self._files: list[BinaryIO] = []
        self._open()

    def _open(self) -> None:
        with explained(self.path, "locked", _KIND):
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
            try:
                self._enter(file.fileno())
            except BaseException:
                file.close()
                raise
        self._files.insert(0, file)

    def _enter(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_size < _MARK_BYTES:
            os.ftruncate(descriptor, _MARK_BYTES)
        others_came = not _locked(descriptor, 1, 0)
        self.others_came |= others_came
        # Of the process that came last.
        self._mark = os.pread(descriptor, _MARK_BYTES, 0)
        fcntl.lockf(descriptor, fcntl.LOCK_SH, 1, 0)
        if others_came:
            # Written once this process can be seen, so that those who are alone notice it before it locks a key.
            os.pwrite(descriptor, os.urandom(_MARK_BYTES), 0)

    def another_came(self) -> bool:
        """Whether another process opened the file after this one."""
        with explained(self.path, "read", _KIND):
            return os.pread(self._files[0].fileno(), _MARK_BYTES, 0) != self._mark

    def renew(self) -> bool:
        """Creates the file again if it was removed; keys are then to be locked again, for processes that come later."""
        with explained(self.path, "read", _KIND):
            if is_at(self.path, os.fstat(self._files[0].fileno())):
                return False
        for file in self._files[1:]:
            file.close()
        del self._files[1:]
        self._open()
        return True

    def lock(self, key: bytes) -> bool:
        """Locks a key, unless another process has it; one that this process has stays locked."""
        with explained(self.path, "locked", _KIND):
            return self._locked(1, _offset(key))

    def unlock(self, keys: Iterable[bytes]) -> None:
        """Unlocks keys."""
        with explained(self.path, "unlocked", _KIND):
            for file, key in product(self._files, keys):
                fcntl.lockf(file, fcntl.LOCK_UN, 1, _offset(key))

    def lock_all(self) -> bool:
        """Locks all keys, unless another process has any."""
        with explained(self.path, "locked", _KIND):
            return self._locked(0, _FIRST)

    def unlock_all_but(self, keys: Iterable[bytes]) -> None:
        """Unlocks all keys but these, which stay locked meanwhile."""
        with explained(self.path, "unlocked", _KIND):
            offsets = sorted({_offset(key) for key in keys})
            for file in self._files:
                start = _FIRST
                for offset in offsets:
                    if offset > start:
                        fcntl.lockf(file, fcntl.LOCK_UN, offset - start, start)
                    start = offset + 1
                fcntl.lockf(file, fcntl.LOCK_UN, 0, start)

    def close(self) -> None:
        """Unlocks all keys, and closes the file."""
        for file in self._files:
            file.close()

    def _locked(self, length: int, start: int) -> bool:
        for count, file in enumerate(self._files):
            if not _locked(file.fileno(), length, start):
                for locked in self._files[:count]:
                    fcntl.lockf(locked, fcntl.LOCK_UN, length, start)
                return False
        return True


def is_at(path: str, file: os.stat_result) -> bool:
    """Whether a file is still at its path."""
    try:
        return os.path.samestat(os.stat(path), file)
    except FileNotFoundError:
        return False


def _locked(descriptor: int, length: int, start: int) -> bool:
    """Locks bytes, unless another process has any of them; other errors, such as no locks left, are raised."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _offset(key: bytes) -> int:
    # Keys are hashes.
    return _FIRST + int.from_bytes(key[:8], "little") % _OFFSETS
