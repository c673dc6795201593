"""Content digests of files and folders, cached for large files until they change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from datadreamer_like.errors import StorageError

from .folders import write_file

# Below this size hashing is faster than a lookup.
_CACHED_FROM_BYTES = 16 * 2**20
# A file changed this recently may change again without a new time stamp.
_UNCHANGED_SECONDS = 2.0


def file_digest(path: str | os.PathLike[str]) -> str:
    """Returns the BLAKE2b digest of a file's content, as 32 hexadecimal digits.

    Digests of large files are cached in the user's cache folder by path, size, inode and times, so that a model of many
    gigabytes is not read in every run. Scripts may set the time of modification, but not that of the last change.
    """
    file = Path(path).resolve()
    stat = file.stat()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if stat.st_size < _CACHED_FROM_BYTES or cache.startswith("~"):  # there is no home folder
        return _hash(file)
    key = json.dumps([str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    note = Path(cache) / "datadreamer_like" / "digests" / f"{name}.json"
    with suppress(OSError, ValueError, KeyError):
        remembered = json.loads(note.read_text())
        if remembered["key"] == key:
            return str(remembered["digest"])
    digest = _hash(file)
    if time.time() - stat.st_mtime > _UNCHANGED_SECONDS and file.stat().st_mtime_ns == stat.st_mtime_ns:
        with suppress(OSError):  # a cache that cannot be written only costs time
            note.parent.mkdir(parents=True, exist_ok=True)
            write_file(note, json.dumps({"key": key, "digest": digest}))
    return digest


def file_states(folder: Path, files: Iterable[Path]) -> dict[str, tuple[int, str]]:
    """Returns size in bytes and digest of files in a folder, by their relative paths."""
    return {file.relative_to(folder).as_posix(): (file.stat().st_size, file_digest(file)) for file in sorted(files)}


def check_states(folder: Path, states: Mapping[str, tuple[int, str]], since: str, advice: str) -> None:
    """Checks that files are as `file_states` found them, at the time that `since` names, such as "the export".

    Raises:
        StorageError: One is missing or has other content; the message ends with the advice.
    """
    for name, (size, digest) in states.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            what = f"is missing since {since}: it had {size:,} bytes"
        elif found != size:
            what = "was cut off" if found < size and file.suffix != ".json" else "was changed"
            what = f"{what} after {since}: it has {found:,} bytes, and had {size:,}"
        elif (now := file_digest(file)) != digest:
            what = f"was changed after {since}: its digest is {now}, and was {digest}"
        else:
            continue
        raise StorageError(f"{file} {what}. {advice}")


def folder_digest(path: str | os.PathLike[str]) -> str:
    """Returns one digest of names and contents of a folder's files, except hidden ones."""
    folder = Path(path)
    hasher = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            hasher.update(f"{relative.as_posix()}\0{file_digest(file)}\0".encode())
    return hasher.hexdigest()


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
