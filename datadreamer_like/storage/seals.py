"""Checksums of files, which find damage: a cut, zeroed or changed file.

A checksum is read from the whole file, so it is compared only if the file's size, times or inode are not those of the
last comparison, which are in the folder's file `.seal`. Copies of a folder are compared once.

A JSON file may hold the checksum of its own content.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datadreamer_like.errors import StorageError

from .folders import write_file

SEAL_NAME = ".seal"

_CHUNK_BYTES = 1 << 20


def checksums(folder: Path, but: Container[str] = ()) -> dict[str, str]:
    """Returns size and CRC-32 of each file below a folder, by its relative path, and seals the folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    sums = {name: checksum(path) for name, path in sorted(paths.items()) if name not in but}
    _seal(folder, {name: _state(paths[name]) for name in sums})
    return sums


def checksum(path: Path) -> str:
    """Returns size and CRC-32 of a file."""
    size = value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            size, value = size + len(chunk), zlib.crc32(chunk, value)
    return f"{size}:{value:08x}"


def damaged_file(folder: Path, sums: Mapping[str, str], *, seal: bool = True) -> str | None:
    """Returns the first file of `checksums` that is missing or has other content, as text for a message; else None.

    With `seal`, the next comparison reads only files that have changed since.
    """
    known: dict[str, list[int]] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads((folder / SEAL_NAME).read_text(encoding="utf-8")))
    states: dict[str, list[int]] = {}
    for name, expected in sums.items():
        path = folder / name
        try:
            states[name] = _state(path)
            if known.get(name) != states[name] and checksum(path) != expected:
                return f"{path} is damaged (its checksum differs)"
        except OSError as error:
            return f"{path} is damaged ({error.strerror})"
    if seal and known != states:
        _seal(folder, states)
    return None


def sealed(content: Mapping[str, Any]) -> str:
    """Returns a mapping as JSON text with its checksum."""
    return json.dumps({**content, "checksum": _content_checksum(content)}, indent=2, ensure_ascii=False)


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads the mapping in a file with the text of `sealed`; raises `StorageError` if it is damaged."""
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error})") from error
    if content.pop("checksum", None) != _content_checksum(content):
        raise StorageError(f"{path} is damaged (its checksum differs)")
    return content


def _content_checksum(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _seal(folder: Path, states: Mapping[str, list[int]]) -> None:
    with suppress(OSError):  # only saves time
        write_file(folder / SEAL_NAME, json.dumps(states))


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names if name != SEAL_NAME)


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
