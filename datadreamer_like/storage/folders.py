"""Files and folders that reach the disk, locks that are released when their process ends, and errors of the disk."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from datadreamer_like.errors import StorageError

logger = logging.getLogger("datadreamer_like")

_PRESENCE = "session-"
_MOST_READ = 10_000
_FLUSHED_AT_ONCE = 8
# What libraries make of an error of the system: safetensors (Rust), `shutil.copytree`, which lists all.
_QUOTED = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
# NumPy, torch and faiss only say that not all was written.
_SHORT = re.compile(r"\d+ requested and \d+ written|PytorchStreamWriter|inline_container|write error in .*\d != \d")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that is full, or of a quota or limit that is reached."""
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextmanager
def explained(what: str, path: Path, *, everything: bool = False) -> Iterator[None]:
    """Turns a full disk or a missing permission inside the block into a `StorageError` that says what to do.

    So it does if a file is where `path` or a folder of it must be. With `everything`, other errors of the system too:
    for blocks that run no code of the user.
    """
    try:
        yield
    except Exception as raised:
        error = raised if isinstance(raised, OSError) else None
        quoted = _quoted(raised)
        # Other errors that quote a number may be the user's own.
        if quoted is not None and (quoted.errno in NO_SPACE or isinstance(raised, shutil.Error)):
            error = quoted
        if error is None or isinstance(error, StorageError):
            raise
        if error.errno in NO_SPACE:
            raise StorageError(
                f"{what}: no space left for {path} ({error.strerror}). Completed results are safe; "
                "free some space and run the script again: it continues."
            ) from raised
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{what}: no permission for {error.filename or path} ({error.strerror}). "
                "Choose a folder that you may write to, or change its permissions."
            ) from raised
        if everything or (error.errno in _NOT_A_FOLDER and _is_at(error.filename, path)):
            raise StorageError(
                f"{what}: {error.filename or path} cannot be used ({error.strerror or error}). "
                "Check that the path is right and its disk is available, or choose another one."
            ) from raised
        raise


def _is_at(file: object, path: Path) -> bool:
    """Whether a file is `path`, in it, next to it, or a folder that it is in."""
    found = Path(str(file))
    return found.is_relative_to(path.parent) or path.is_relative_to(found)


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns errors of libraries that write models inside the block into the `OSError` of the system that they quote."""
    try:
        yield
    except Exception as error:
        quoted = _quoted(error)
        if quoted is None:
            raise
        raise quoted from error


def _quoted(error: Exception) -> OSError | None:
    """Returns the error of the system that a library's error is about; None for other errors."""
    if isinstance(error, OSError) and (error.errno is not None or isinstance(error, StorageError)):
        return None
    said = str(error)[:_MOST_READ]
    if (found := _QUOTED.search(said)) is not None:
        number = int(found[1] or found[2])
    elif isinstance(error, OSError | RuntimeError) and _SHORT.search(said):
        number = errno.ENOSPC
    else:
        return None
    return OSError(number, os.strerror(number))


def write_file(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
    draft = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text, encoding="utf-8")
        flush(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def locked(lock_file: Path, what: str) -> Iterator[bool]:
    """Holds an interprocess lock inside the block; the system releases it when the process ends in any way.

    Yields whether another process held it, so that data read before may have changed.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        logger.info("%s: another process is working on it; waiting for it to end", what)
        lock.acquire(poll_interval=0.2)
    try:
        yield waited
    finally:
        lock.release()


def is_locked(lock_file: Path) -> bool:
    """Returns whether a process holds the lock of a file."""
    if not lock_file.exists():
        return False
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


class Presence:
    """Marks a folder as in use, until it is collected or its process ends in any way; see `in_use`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{_PRESENCE}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        lock = FileLock(file, thread_local=False)
        lock.acquire()
        weakref.finalize(self, _leave, lock, file, os.getpid())


def _leave(lock: FileLock, file: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork
        file.unlink(missing_ok=True)
        lock.release()


def in_use(folder: Path) -> bool:
    """Returns whether there is a `Presence` in a folder; removes the marks of killed processes."""
    files = list(folder.glob(f"{_PRESENCE}*"))
    held = [is_locked(file) for file in files]
    for file, is_held in zip(files, held, strict=True):
        if not is_held:
            file.unlink(missing_ok=True)
    return any(held)


def flush_tree(folder: Path) -> None:
    """Flushes a folder with all its files and folders to disk."""
    flush(*(Path(root) / file for root, _, files in os.walk(folder) for file in (*files, "")))


def flush(*paths: Path) -> None:
    """Flushes files, or folders' lists of files, to disk; several at once, which a file system does in one go."""
    if len(paths) == 1:
        _flush(paths[0])
        return
    with ThreadPoolExecutor(min(len(paths), _FLUSHED_AT_ONCE)) as pool:
        for _ in pool.map(_flush, paths):
            pass


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
