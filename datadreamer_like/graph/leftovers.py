"""What remains in a session's folder of killed and superseded runs, and its removal.

A session removes it when it starts, if no living process works with the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import defaultdict
from pathlib import Path

from datadreamer_like.errors import StorageError
from datadreamer_like.storage.folders import explained, in_use, is_locked, locked

from .manifest import Manifest
from .places import Places, is_result, is_unfinished_link, work_key

OLDER_KEPT = 10
"""Older results of a name that are kept, those used last: undoing a change finds them."""


def remove_leftovers(places: Places, older_kept: int = OLDER_KEPT, *, work: bool = False) -> tuple[int, int]:
    """Removes what no result or run needs; returns the number of results removed, and all bytes.

    That is results that are unfinished, that have been replaced, or older than the last `older_kept` of their name,
    temporary tables, and unfinished work whose result is complete; with `work`, all unfinished work. No other process
    may use the folder.
    """
    linked = set()
    for link in places.links():
        if is_unfinished_link(link):
            link.unlink(missing_ok=True)
        else:
            linked.add(places.linked(link))
    count = size = 0
    older: dict[str, list[Path]] = defaultdict(list)
    removed: list[Path] = []
    for key in places.all_keys():
        newest = places.newest(key)
        removed += [place for place in places.all_of(key) if place != newest]
        if newest is not None and newest not in linked:
            older[_name(newest)].append(newest)
    for of_name in older.values():
        of_name.sort(key=lambda place: place.stat().st_mtime_ns, reverse=True)
        removed += of_name[older_kept:]
    for place in removed:
        count += is_result(place)
        size += _remove(place)
        with contextlib.suppress(OSError):
            place.parent.rmdir()
            places.lock(place.parent.name).unlink()
    for folder in places.all_work():
        key = work_key(folder)
        if work or not key or places.newest(key) is not None:
            size += _remove(folder)
    return count, size


def clean(folder: Path, older_kept: int = 0) -> tuple[int, int]:
    """Removes older results but the last ones of each name, and unfinished work; returns what `remove_leftovers` does.

    Raises:
        StorageError: The folder is not a session's, or a process works with it.
    """
    places = Places(folder)
    if not places.note.exists():
        raise StorageError(f"{folder} is not the folder of a session (it has no {places.note.name}).")
    with explained("Cleaning", folder, everything=True), locked(places.locks / "open.lock", "Cleaning"):
        if in_use(places.locks):
            raise StorageError(f"A process works with {folder}. Wait for its end, and clean then.")
        return remove_leftovers(places, older_kept, work=True)


def remove_work(places: Places, label: str, key: str) -> None:
    """Removes the unfinished work for a complete result, and that for other results of its name that nobody makes."""
    for folder in places.all_work():
        of = work_key(folder)
        if of == key or (folder.name == f"{label}-{of}" and not is_locked(places.lock(of))):
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        places.work.rmdir()


def _name(place: Path) -> str:
    try:
        manifest = Manifest.read(place)
    except StorageError:
        manifest = None
    return "" if manifest is None else manifest.name


def _remove(folder: Path) -> int:
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(root, name)).st_size
    shutil.rmtree(folder, ignore_errors=True)
    return size
