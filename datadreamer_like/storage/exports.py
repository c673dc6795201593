"""Files and folders that the user names: complete or absent, and an earlier one stays until the new one is there."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datadreamer_like.errors import StorageError

from .folders import explained, flush, flush_tree

_EXCHANGE = 2  # of renameat2
_HERE = -100


@contextmanager
def new_file(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Yields the path of a file to write, which becomes `path` if the block succeeds, and is deleted otherwise.

    A kill leaves `path` as it was, and a hidden file that is removed with the next export to that path. `what` is the
    work, for errors.
    """
    target = _target(path, what)
    with _system_errors(what, target):
        if target.is_dir():
            raise StorageError(f"{what}: {target} is a folder. Give the path of a file in it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(target)
        draft.touch()
    try:
        with _held(draft):
            # Other errors of the system may come from the script's own functions.
            with explained(what, target), _named(target, draft):
                yield draft
            with _system_errors(what, target):
                flush(draft)
                os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_export(path: str | os.PathLike[str], what: str, replaces: tuple[str, ...]) -> Iterator[Path]:
    """Yields an empty folder, which becomes `path` if the block succeeds, and is deleted otherwise; see `new_file`.

    An earlier folder is replaced if it is empty or has one of the files `replaces`, which show that it is an export.
    """
    target = _target(path, what)
    with _system_errors(what, target):
        if os.path.lexists(target):
            is_export = target.is_dir() and (
                not any(target.iterdir()) or any((target / name).is_file() for name in replaces)
            )
            if not is_export:
                raise StorageError(f"{what}: {target} exists already and is not an earlier export. Choose another.")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(target)
        draft.mkdir()
    try:
        with _held(draft), _system_errors(what, target):
            yield draft
            flush_tree(draft)
            _put_in_place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put_in_place(draft: Path, target: Path) -> None:
    """Makes a folder the folder `target`, and removes the earlier one; a kill leaves one of both, whole."""
    if not os.path.lexists(target):
        os.rename(draft, target)
    elif _exchanged(draft, target):
        shutil.rmtree(draft, ignore_errors=True)  # now the earlier one
    else:
        earlier = target.with_name(f"{draft.name}-earlier")
        os.rename(target, earlier)
        os.rename(draft, target)
        shutil.rmtree(earlier, ignore_errors=True)


def _exchanged(draft: Path, target: Path) -> bool:
    """Exchanges two folders in one step; returns whether the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    names = (os.fsencode(draft), os.fsencode(target))
    return rename is not None and rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0


def local_path(path: str | os.PathLike[str], what: str) -> Path:
    """Returns a path that the user gave, with `~` as the home folder; an address and what is no path are refused."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise StorageError(f"{what}: {text!r} is not a path. Give the name of a file or folder to write.")
    if is_address(text):
        raise StorageError(f"{what}: {text} is an address. Write to a local path, and copy it from there.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user
        raise StorageError(f"{what}: {text} cannot be written to ({error}). Give another path.") from error


def is_address(path: str) -> bool:
    """Returns whether a path is one of another system, such as s3://bucket/folder; C:/folder is a path."""
    return re.match(r"[A-Za-z][\w+.-]+:/", path) is not None


def _target(path: str | os.PathLike[str], what: str) -> Path:
    return Path(os.path.realpath(local_path(path, what)))


def _draft(target: Path) -> Path:
    """Returns a hidden name next to the target, after removing what killed processes left there."""
    start = f".{target.name[:100]}-"
    for left in target.parent.glob(f"{_escaped(start)}*.part"):
        with suppress(OSError), _held(left):  # it may be in use
            left.unlink() if left.is_file() else shutil.rmtree(left)
    return target.with_name(f"{start}{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Locks a file or folder, where the system has such locks; `OSError` if another process holds it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _system_errors(what: str, target: Path) -> Iterator[None]:
    with explained(what, target, everything=True), _named(target):
        yield


@contextmanager
def _named(target: Path, draft: Path | None = None) -> Iterator[None]:
    """Puts the user's path into the errors of the system; with `draft`, only into those about the draft."""
    try:
        yield
    except OSError as error:
        # An error without a number says nothing but its name, once it has one.
        if (
            not isinstance(error, StorageError)
            and error.errno is not None
            and (draft is None or str(error.filename).startswith(str(draft)))
        ):
            error.filename = str(target)
        raise
