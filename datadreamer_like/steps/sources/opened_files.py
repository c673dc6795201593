"""Which files a function reads, so that their content is part of what determines a source's rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

_seen: ContextVar[dict[str, None] | None] = ContextVar("files that are opened", default=None)

_NOT_READ = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NO_DATA = ("/proc", "/sys", "/etc")
_CODE = (".py", ".pyc", ".so", ".pyd", ".dll")


@contextmanager
def watched_files() -> Iterator[list[Path]]:
    """Yields a list that holds, after the block, the data files that code in the block opened for reading."""
    _install()
    found: list[Path] = []
    seen: dict[str, None] = {}
    token = _seen.set(seen)
    try:
        yield found
    finally:
        _seen.reset(token)
        found += [path for path in map(Path, seen) if path.is_file() and not _is_of_system(path)]


@cache
def _install() -> None:
    sys.addaudithook(_note)  # Python has no way to remove one


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and (seen := _seen.get()) is not None:
        path, _, flags = args
        if isinstance(path, str | bytes) and isinstance(flags, int) and not flags & _NOT_READ:
            seen[os.path.realpath(os.fsdecode(path))] = None


def _is_of_system(path: Path) -> bool:
    prefixes = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), *_NO_DATA)
    return path.suffix in _CODE or any(path.is_relative_to(os.path.realpath(prefix)) for prefix in prefixes)
