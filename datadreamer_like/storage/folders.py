"""Folders that are complete or absent, and locks that are released when their process ends."""

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


@contextmanager
def explained(what: str, path: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission inside the block into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{what}: no space left for {path} ({error.strerror}). Completed results are safe; "
                "free some space and run the script again: it continues."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{what}: no permission for {error.filename or path} ({error.strerror}). "
                "Choose a folder that you may write to, or change its permissions."
            ) from error
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder, which becomes `target` if the block succeeds, and is deleted otherwise.

    If the block deletes the folder itself, there is no `target`. The folder is next to `target`, so that it can be
    renamed atomically; its files are flushed to disk before. After a kill, `sweep` removes the hidden folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".draft-{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    try:
        yield draft
        if draft.exists():
            for root, _, files in os.walk(draft):
                for file in (*files, ""):
                    _flush(Path(root) / file)
            os.rename(draft, target)
            _flush(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sweep(parent: Path, name: str) -> None:
    """Removes drafts of `parent / name` left by killed processes; the caller must hold the lock of that name."""
    for draft in parent.glob(f".draft-{name}-*-*"):
        if draft.name.removeprefix(f".draft-{name}-").count("-") == 1:
            shutil.rmtree(draft, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
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
