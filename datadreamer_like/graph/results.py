"""A session's results: finding them by what determines them, making them, and naming them. See `places`."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datadreamer_like.errors import DefinitionError, NewerFormat, StorageError, check_number
from datadreamer_like.storage.folders import Presence, explained, in_use, locked, write_file
from datadreamer_like.storage.seals import checksums, read_sealed, sealed
from datadreamer_like.storage.values import is_unicode

from .card import CARD_NAME
from .leftovers import remove_leftovers, remove_work
from .manifest import MANIFEST_NAME, Manifest
from .places import Places, is_result

logger = logging.getLogger("datadreamer_like")

SESSION_FORMAT = 2

# Errors of file systems that have no links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Kept:
    """A result in a folder; `found` if an earlier run made it. `place` is its folder, which never moves."""

    manifest: Manifest
    found: bool = False
    place: Path | None = None


@dataclass(frozen=True)
class OnDemand:
    """A result that is not saved but made each time it is read, such as lazy rows."""

    value: Any


@dataclass(frozen=True)
class Unmade:
    """No result: the node is planned and would run."""


Outcome = Kept | OnDemand | Unmade
"""The return value of a node's `build`."""


@dataclass(frozen=True)
class Wanted:
    """A result that a node needs; `again` makes it even if it exists. `parts` are what the fingerprint is made of.

    `folder` is the link of the node's name.
    """

    name: str
    folder: Path
    fingerprint: str
    parts: Mapping[str, str]
    again: bool = False


class Results:
    """The results in a session's folder; those of a `preview` of so many rows have links of their own."""

    def __init__(self, folder: Path, preview: int | None = None) -> None:
        check_number(preview, "preview", 1, whole=True, optional=True)
        self.folder = folder
        self.preview = preview
        self.places = Places(folder, preview is not None)
        self._names: set[Path] = set()
        self._counts: dict[Path, int] = {}  # the highest number in use, by the folder of number 2
        self._keys: dict[str, dict[Path, str]] = {}  # by fingerprint and name
        self._lock = threading.Lock()
        self._presence: Presence | None = None
        self._previews: Results | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Results, (self.folder, self.preview)

    def of_preview(self, rows: int | None) -> Results:
        """Returns the results of nodes with all rows, or of previews of so many; those have names of their own."""
        if rows is None or self.preview is not None:
            return self
        with self._lock:
            if self._previews is None:
                self._previews = Results(self.folder, rows)
                self._previews._presence = self._presence
            return self._previews

    @property
    def cache_folder(self) -> Path:
        """The folder of answers, embeddings and indexes."""
        return self.places.cache

    def open_to_read(self) -> None:
        """Checks that this version reads the folder, if there is one; changes no file."""
        if self.places.note.exists():
            NewerFormat.check(self.folder, read_sealed(self.places.note).get("format"), SESSION_FORMAT)

    def open(self) -> None:
        """Creates the folder, or checks that it can be written and is in a format that this version reads.

        Removes what killed and superseded runs left, unless a living process uses the folder. From now on, and as long
        as a node refers to these results, this process uses it.
        """
        locks = self.places.locks
        with explained("Opening the session", self.folder, everything=True):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_note()
            with locked(locks / "open.lock", "Opening the session"):
                if not in_use(locks):
                    remove_leftovers(self.places)
                self._presence = Presence(locks)

    def _check_note(self) -> None:
        """Checks the version of the layout, or writes it if it is missing or damaged."""
        note = self.places.note
        if note.exists():
            try:
                found = read_sealed(note).get("format")
            except StorageError as error:
                if not self.places.results.is_dir():
                    raise StorageError(f"{error}. Remove that file, if it is this package's.") from error
                logger.warning("making %s again, with the results next to it: %s", note.name, error)
            else:
                NewerFormat.check(self.folder, found, SESSION_FORMAT)
                if found != SESSION_FORMAT:
                    raise StorageError(
                        f"{self.folder} was written by a development version with another layout. Use another folder."
                    )
                return
        write_file(note, sealed({"format": SESSION_FORMAT}))

    # Names

    def claim(self, name: str, inside: str | None = None) -> tuple[str, Path]:
        """Returns a node's unique name and the folder of its result; a name in use gets a number.

        `inside` is the name of the node that makes this one.
        """
        if not name or not name.strip():
            raise DefinitionError("A node needs a name: a non-empty text as its first argument.")
        if "/" in name:
            raise DefinitionError(f'The name "{name}" has a "/", which is not allowed. Use another character.')
        if not is_unicode(name):
            raise DefinitionError(
                f"The name {name!r} is not valid Unicode, so cards and logs cannot show it. Rename it."
            )
        base = self.places.names if inside is None else self.places.inside / _slug(inside)
        with self._lock:
            free = self.free_name(name, lambda count: f"{name} #{count}", base)
            folder = base / _slug(free)
            self._names.add(folder)
        return free if inside is None else f"{inside} / {free}", folder

    def give_back(self, folder: Path) -> None:
        """Makes a name available again that `claim` gave with this folder, of a node that never ran."""
        with self._lock:
            self._names.discard(folder)

    def free_name(self, first: str, nth: Callable[[int], str], base: Path | None = None) -> str:
        """Returns an unused name: `first`, or `nth(2)`, `nth(3)` ..."""
        base = base or self.places.names
        name, second = first, base / _slug(nth(2))
        count = self._counts.get(second, 1)
        while base / _slug(name) in self._names:
            count += 1
            name = nth(count)
        self._counts[second] = max(1, count - 1)  # `count` itself may remain unclaimed
        return name

    # Results

    def find(self, wanted: Wanted) -> Kept | None:
        """Returns the result if it is there and whole, and links the node's name to it; takes no lock."""
        with explained(f'"{wanted.name}"', wanted.folder, everything=True):
            found, _ = self.look(wanted)
            if found is not None and found.place is not None:
                self._link(wanted, found.place)
            return found

    def make(self, wanted: Wanted, build: Callable[[Path], Outcome]) -> Outcome:
        """Makes a result unless it is there; only one process at a time makes it.

        `build` fills an empty folder and returns `Kept`, or returns `OnDemand` for a result that is not saved.
        """
        key, what = self.key(wanted), f'"{wanted.name}"'
        with explained(what, wanted.folder), locked(self.places.lock(key), what) as waited:
            self._check_name(wanted.folder)
            found, damage = self.look(wanted)
            if found is not None and found.place is not None and (waited or not wanted.again):
                self._link(wanted, found.place)
                return found
            if damage:
                logger.warning('making "%s" again: %s', wanted.name, damage)
            previous = self.current(wanted.folder)
            if previous is not None and previous.fingerprint != wanted.fingerprint:
                logger.info('rerunning "%s": %s', wanted.name, previous.difference(wanted.parts))
            replaced, place = self.places.newest(key), self._free_place(key)
            place.mkdir(parents=True)
            try:
                outcome = build(place)
                if isinstance(outcome, Kept):
                    outcome.manifest.remade = "" if replaced is None else _remade(place, replaced)
                    outcome.manifest.complete(place)
            finally:
                if not is_result(place):
                    shutil.rmtree(place, ignore_errors=True)
            if isinstance(outcome, Kept):
                outcome = replace(outcome, place=place)
                self._link(wanted, place)
                remove_work(self.places, _label(wanted.folder, self.folder), key)
            return outcome

    def current(self, folder: Path) -> Manifest | None:
        """Returns the manifest of the result that a name links to; None if there is none or it is damaged."""
        try:
            return Manifest.read(folder)
        except NewerFormat:
            raise
        except StorageError:
            return None

    def scratch(self, wanted: Wanted) -> Path:
        """Returns a folder for unfinished work, which survives a kill and is removed with completion of the result."""
        key = self.key(wanted)
        return self.places.work_of(key) or self.places.work / f"{_label(wanted.folder, self.folder)}-{key}"

    def key(self, wanted: Wanted) -> str:
        """Returns the key of a result: that which the name links to, or the next that no other node here has."""
        with self._lock:
            keys = self._keys.setdefault(wanted.fingerprint, {})
            if wanted.folder not in keys:
                taken = set(keys.values())
                linked = self.places.linked(wanted.folder)
                own = rf"{re.escape(wanted.fingerprint)}(-\d+)?"
                first = [] if linked is None or not re.fullmatch(own, linked.parent.name) else [linked.parent.name]
                more = (wanted.fingerprint + (f"-{n}" if n > 1 else "") for n in itertools.count(1))
                keys[wanted.folder] = next(key for key in itertools.chain(first, more) if key not in taken)
            return keys[wanted.folder]

    def look(self, wanted: Wanted, *, seal: bool = True) -> tuple[Kept | None, str | None]:
        """Returns the result, or the damage that it has; without `seal` it changes no file."""
        place = self.places.newest(self.key(wanted))
        if place is None:
            return None, None
        try:
            manifest = Manifest.read(place)
        except NewerFormat:
            raise
        except StorageError as error:
            return None, str(error)
        damage = None if manifest is None else manifest.damage(place, seal=seal)
        return (Kept(manifest, found=True, place=place) if manifest is not None and not damage else None), damage

    def _free_place(self, key: str) -> Path:
        """Returns the folder of the next result of a key, after the removal of unfinished ones."""
        places = self.places.all_of(key)
        while places and not is_result(places[-1]):
            shutil.rmtree(places.pop(), ignore_errors=True)
        return self.places.results / key / str(int(places[-1].name) + 1 if places else 1)

    def _check_name(self, link: Path) -> None:
        """Rejects a name whose link would replace something that this package has not written."""
        if not (self.places.linked(link) or not os.path.lexists(link) or (link / MANIFEST_NAME).exists()):
            raise StorageError(
                f"{link} exists, but was not written by this package (it has no {MANIFEST_NAME}). "
                "Move it away or choose another output folder."
            )

    def _link(self, wanted: Wanted, place: Path) -> None:
        """Links the node's name to a result; one that it linked to becomes an older result."""
        link, before = wanted.folder, self.places.linked(wanted.folder)
        if before == place:
            return
        self._check_name(link)
        if before is not None and before.exists():
            os.utime(before)  # the time of its last use
        elif link.is_dir() and not link.is_symlink():  # a session that was copied without its links
            shutil.rmtree(link)
        try:
            self.places.link(link, place)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            logger.debug("no links on this system: %s is in %s", wanted.name, place)


def _remade(place: Path, replaced: Path) -> str:
    """Returns `Manifest.remade` of a new result, by comparison with the one that it replaces."""
    but = (MANIFEST_NAME, CARD_NAME)
    try:
        manifest = Manifest.read(replaced)
    except StorageError:
        manifest = None
    old = checksums(replaced, but) if manifest is None else manifest.files
    new = checksums(place, but)
    if {name: checksum for name, checksum in old.items() if name not in but} == new:
        return "" if manifest is None else manifest.remade
    return hashlib.blake2b(json.dumps(new, sort_keys=True).encode(), digest_size=16).hexdigest()


def _label(link: Path, folder: Path) -> str:
    """Returns the name of a node's unfinished work."""
    return link.name if link.parent == folder else f"{link.parent.name}~{link.name}"


def _slug(name: str) -> str:
    """Turns a name into a file name: lower case, hyphens for spaces, only characters that the file system has."""
    slug = re.sub(r"[^\w\-#().,&+=@!~' ]", "_", name.lower()).strip()
    slug = re.sub(r"\s+", "-", slug).lstrip(".") or "_"
    content = slug.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    try:
        os.fsencode(slug)
    except UnicodeEncodeError:
        return f"{slug.encode('ascii', 'replace')[:111].decode().replace('?', '_')}~{digest}"
    if len(content) <= 120:  # file systems allow 255 bytes; names of work folders hold up to two names and a key
        return slug
    return f"{content[:111].decode(errors='ignore')}~{digest}"
