"""Folders that are complete or absent, and locks that die with their process."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from datadreamer_like.errors import StorageError

logger = logging.getLogger("datadreamer_like")

_POLL_SECONDS = 0.2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def explained(what: str, path: Path) -> Iterator[None]:
    """Turns the operating system's refusals inside the block into one sentence on what to do.

    Raises:
        StorageError: The disk is full, or the path may not be written or read.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{what}: no space left for {path} ({error.strerror}). Nothing that was complete is lost; "
                "free some space and run the script again: it continues."
            ) from error
        if error.errno in _NOT_PERMITTED:
            raise StorageError(
                f"{what}: no permission for {error.filename or path} ({error.strerror}). "
                "Choose a folder that you may write to, or change its permissions."
            ) from error
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes `target` when the block ends well, and is deleted otherwise.

    A block that deletes the folder itself leaves no `target`.

    The folder stands beside `target`, so that one rename moves it; its files are flushed to the disk before.
    A process that is killed leaves a hidden folder behind, which `sweep` removes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".draft-{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    try:
        yield draft
        if draft.exists():
            flush_folder(draft)
            os.rename(draft, target)
            _flush(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sweep(parent: Path, name: str) -> None:
    """Removes drafts of `parent / name` that killed processes left; call it with the lock of that name held."""
    for draft in parent.glob(f".draft-{name}-*-*"):
        if draft.name.removeprefix(f".draft-{name}-").count("-") == 1:
            shutil.rmtree(draft, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flushes all files below a folder, and the folders themselves, to the disk."""
    for root, _, files in os.walk(folder):
        for file in files:
            _flush(Path(root) / file)
        _flush(Path(root))


def write_file(path: Path, text: str) -> None:
    """Writes a small text file so that it is either the old one or the new one, whenever the process dies."""
    draft = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text, encoding="utf-8")
        _flush(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def locked(lock_file: Path, what: str) -> Iterator[bool]:
    """Holds a lock between processes inside the block; the system frees it when the process dies, however it dies.

    Yields:
        Whether another process held the lock, so that what was read before may have changed.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        logger.info("%s: another process is working on it; waiting for it to end", what)
        lock.acquire(poll_interval=_POLL_SECONDS)
    try:
        yield waited
    finally:
        lock.release()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not flush folders; theirs is the promise then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
