"""The layout of a session's folder.

.results/KEY/1/       a result with its manifest, by fingerprint; it is never moved, so its path stays valid
.results/KEY/2/       the one that replaced it: made again by force, for failed rows, or because of damage
NAME                  a link to the result of a node
.inside/PARENT/NAME   links to results of nodes made inside another node
.work/NAME-KEY/       unfinished work that survives a kill
.work/rows-*/         temporary tables, see `lazy_table`
.locks/               locks between processes
.cache/               answers, embeddings and indexes
.preview/              links to results of previews, laid out as the folder itself: NAME, .inside/PARENT/NAME
.session.json         the version of this layout

A folder in `.results/KEY` is a result once it has a manifest, which is written last. KEY is the fingerprint; several
nodes of one session with the same fingerprint have a result each, in `FINGERPRINT`, `FINGERPRINT-2` ...
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from .manifest import MANIFEST_NAME

_LINK_DRAFT = ".link-"
_PREVIEW, _INSIDE = ".preview", ".inside"


class Places:
    """Where things are in a session's folder; a `preview` has names of its own."""

    def __init__(self, folder: Path, preview: bool = False) -> None:
        self.folder = folder
        self.names = folder / _PREVIEW if preview else folder
        self.results = folder / ".results"
        self.inside = self.names / _INSIDE
        self.work = folder / ".work"
        self.locks = folder / ".locks"
        self.cache = folder / ".cache"
        self.note = folder / ".session.json"

    def lock(self, key: str) -> Path:
        """Returns the lock of a result, which the process that makes it holds."""
        return self.locks / f"{key}.lock"

    def newest(self, key: str) -> Path | None:
        """Returns the result of a key; None if there is none."""
        return next((place for place in reversed(self.all_of(key)) if is_result(place)), None)

    def all_of(self, key: str) -> list[Path]:
        """Returns the results of a key, unfinished ones too, oldest first."""
        found = [place for place in _listed(self.results / key) if place.name.isdigit()]
        return sorted(found, key=lambda place: int(place.name))

    def all_keys(self) -> list[str]:
        """Returns the keys of all results."""
        return [place.name for place in _listed(self.results)]

    def links(self) -> Iterator[Path]:
        """Yields all links of names, also those that a kill has left unfinished."""
        for names in (self.folder, self.folder / _PREVIEW):
            for folder in (names, *_listed(names / _INSIDE)):
                yield from (path for path in _listed(folder) if path.is_symlink() and self.linked(path) is not None)

    def linked(self, link: Path) -> Path | None:
        """Returns the result that a name links to; None if it is no such link."""
        if not link.is_symlink():
            return None
        target = Path(os.path.normpath(link.parent / os.readlink(link)))
        return target if target.parent.parent == self.results else None

    def link(self, link: Path, place: Path) -> None:
        """Makes a name link to a result, atomically."""
        link.parent.mkdir(parents=True, exist_ok=True)
        draft = link.with_name(f"{_LINK_DRAFT}{os.getpid()}-{uuid.uuid4().hex[:8]}")
        os.symlink(os.path.relpath(place, link.parent), draft, target_is_directory=True)
        os.replace(draft, link)

    def work_of(self, key: str) -> Path | None:
        """Returns the folder of unfinished work for a result; None if there is none."""
        return next((path for path in _listed(self.work) if work_key(path) == key), None)

    def all_work(self) -> list[Path]:
        """Returns all folders of unfinished work."""
        return _listed(self.work)


def is_result(place: Path) -> bool:
    """Returns whether a result in a folder is complete."""
    return (place / MANIFEST_NAME).exists()


def is_unfinished_link(link: Path) -> bool:
    """Returns whether a link was left by a kill."""
    return link.name.startswith(_LINK_DRAFT)


def work_key(work: Path) -> str:
    """Returns the key of the result that some unfinished work is for; "" for a temporary table."""
    found = re.fullmatch(r".*?-([0-9a-f]{32}(-\d+)?)", work.name)
    return found[1] if found else ""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
