"""A session's results in its folder. Only this module defines the folder's layout.

NAME/                 the current result of a node, with its manifest
.inside/PARENT/NAME/  results of nodes made inside another node
.older/NAME/HASH/     older results of a node by fingerprint, used again when a change is undone
.work/NAME-HASH/      unfinished work that survives a kill
.locks/               locks between processes
.cache/               answers, embeddings and indexes
.session.json         the version of this layout
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from datadreamer_like.errors import DefinitionError, NewerFormat, StorageError
from datadreamer_like.storage.digests import folder_digest
from datadreamer_like.storage.folders import explained, locked, new_folder, sweep, write_file

from .card import CARD_NAME

logger = logging.getLogger("datadreamer_like")

SESSION_FORMAT = 1
MANIFEST_FORMAT = 1
MANIFEST_NAME = "node.json"


@dataclass
class Manifest:
    """The contents of `node.json`.

    Attributes:
        name: The node's name when the result was made.
        fingerprint: Hash of everything that determines the result.
        parts: Fingerprint of each part, by name; a rerun reports which ones changed.
        columns: Column names of the result, for steps; so is the number of `rows`.
        pickled: Whether the table holds pickled Python objects.
        card: The node's card, without its parents.
        failed_rows: Indices of all rows with an error instead of a value, as ranges: "3,7-9".
        failures: Errors by row index, for the first thousand of them.
        result: Further values of the node's class, to read without opening the result.
        remade: Digest of the content once `force` has replaced a different result of the same fingerprint.
    """

    name: str
    class_name: str
    fingerprint: str
    parts: dict[str, str]
    format: int = MANIFEST_FORMAT
    columns: list[str] | None = None
    rows: int | None = None
    pickled: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    failed_rows: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    remade: str = ""

    @property
    def failed(self) -> list[int]:
        """Indices of all rows with an error instead of a value, in order."""
        ranges = [part.split("-") for part in self.failed_rows.split(",") if part]
        return [index for part in ranges for index in range(int(part[0]), int(part[-1]) + 1)]

    def write(self, folder: Path) -> None:
        """Writes the manifest into a folder that is not in use yet."""
        (folder / MANIFEST_NAME).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Reads a folder's manifest; None if the folder does not exist. Other folders than a node's are refused."""
        path = folder / MANIFEST_NAME
        try:
            data = dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if folder.exists():
                raise StorageError(
                    f"{folder} exists, but was not written by this package (it has no {MANIFEST_NAME}). "
                    "Move it away or choose another output folder."
                ) from None
            return None
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path} is damaged ({error}). Remove the folder {folder} and run again.") from error
        NewerFormat.check(folder, data.get("format", 0), MANIFEST_FORMAT)
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    def difference(self, parts: Mapping[str, str]) -> str:
        """Describes the differences between this result's fingerprint and a new one."""
        changed = []
        for name in {**self.parts, **parts}:
            if self.parts.get(name) != parts.get(name):
                verb = "was added" if name not in self.parts else "was removed" if name not in parts else "changed"
                changed.append(f"{name} {verb}")
        return ", ".join(changed) or "it was made by another version"


@dataclass(frozen=True)
class Kept:
    """A result in a folder; `found` if an earlier run made it."""

    manifest: Manifest
    found: bool = False


@dataclass(frozen=True)
class OnDemand:
    """A result that is not saved but made each time it is read, such as lazy rows."""

    value: Any


Outcome = Kept | OnDemand
"""The return value of a node's `build`."""


@dataclass(frozen=True)
class Wanted:
    """A result that a node needs; `force` makes it even if it exists. `parts` are what the fingerprint is made of."""

    name: str
    folder: Path
    fingerprint: str
    parts: Mapping[str, str]
    force: bool = False


class Results:
    """The results in a session's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: set[Path] = set()
        self._counts: dict[Path, int] = {}  # the highest number in use, by the folder of number 2
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Results, (self.folder,)

    @property
    def cache_folder(self) -> Path:
        """The folder of answers, embeddings and indexes."""
        return self.folder / ".cache"

    def open(self) -> None:
        """Creates the folder, or checks that it can be written and is in a format that this version reads."""
        with explained("Opening the session", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            note = self.folder / ".session.json"
            if note.exists():
                try:
                    found = int(json.loads(note.read_text(encoding="utf-8"))["format"])
                except (ValueError, KeyError, TypeError) as error:
                    raise StorageError(
                        f"{note} is damaged. Remove that file; the results next to it are kept."
                    ) from error
                NewerFormat.check(self.folder, found, SESSION_FORMAT)
            else:
                write_file(note, json.dumps({"format": SESSION_FORMAT}))
            if not os.access(self.folder, os.W_OK):
                raise StorageError(f"No permission to write to {self.folder}. Choose a folder that you may write to.")

    # Names

    def claim(self, name: str, inside: str | None = None) -> tuple[str, Path]:
        """Returns a node's unique name and the folder of its result; a name in use gets a number.

        `inside` is the name of the node that makes this one.
        """
        if not name or not name.strip():
            raise DefinitionError("A node needs a name: a non-empty text as its first argument.")
        if "/" in name:
            raise DefinitionError(f'The name "{name}" has a "/", which is not allowed. Use another character.')
        base = self.folder if inside is None else self.folder / ".inside" / _slug(inside)
        with self._lock:
            free = self.free_name(name, lambda count: f"{name} #{count}", base)
            folder = base / _slug(free)
            self._names.add(folder)
        return free if inside is None else f"{inside} / {free}", folder

    def free_name(self, first: str, nth: Callable[[int], str], base: Path | None = None) -> str:
        """Returns an unused name: `first`, or `nth(2)`, `nth(3)` ..."""
        base = base or self.folder
        name, second = first, base / _slug(nth(2))
        count = self._counts.get(second, 1)
        while base / _slug(name) in self._names:
            count += 1
            name = nth(count)
        self._counts[second] = max(1, count - 1)  # `count` itself may remain unclaimed
        return name

    # Results

    def find(self, wanted: Wanted) -> Kept | None:
        """Returns the result if it is the current one of its name; read-only, without a lock."""
        manifest = Manifest.read(wanted.folder)
        if manifest is None or manifest.fingerprint != wanted.fingerprint:
            return None
        return Kept(manifest, found=True)

    def make(self, wanted: Wanted, build: Callable[[Path], Outcome]) -> Outcome:
        """Makes a result, or restores an older one; only one process at a time makes it.

        It becomes the current one of its name, and the previous one becomes an older result. `build` fills an empty
        folder and returns `Kept`, or returns `OnDemand` for a result that is not saved.
        """
        folder, older = wanted.folder, self.older(wanted).parent
        inside = folder.parent.name if folder.parent != self.folder else ""
        lock = self.folder / ".locks" / f"{inside}~{folder.name}"
        what = f'"{wanted.name}"'
        with explained(what, folder), locked(lock, what) as waited, _removed_if_empty(older):
            target = self.older(wanted)
            if self.find(wanted) is None and target.is_dir():
                self._promote(wanted)
            found = self.find(wanted)
            if found is not None and (waited or not wanted.force):
                return found
            previous = Manifest.read(folder)
            if previous is not None and previous.fingerprint != wanted.fingerprint:
                logger.info('rerunning "%s": %s', wanted.name, previous.difference(wanted.parts))
            sweep(older, wanted.fingerprint)
            shutil.rmtree(target, ignore_errors=True)  # of a forced run that was killed
            with new_folder(target) as draft:
                outcome = build(draft)
                if isinstance(outcome, Kept):
                    outcome.manifest.remade = _remade(draft, folder, found.manifest) if found is not None else ""
                    outcome.manifest.write(draft)
                else:
                    shutil.rmtree(draft)
            if isinstance(outcome, Kept):
                self._promote(wanted)
                shutil.rmtree(self.scratch(wanted), ignore_errors=True)
            return outcome

    def older(self, wanted: Wanted) -> Path:
        """Returns the folder of a result that is not the current one of its name."""
        return wanted.folder.parent / ".older" / wanted.folder.name / wanted.fingerprint

    def folder_of(self, wanted: Wanted) -> Path:
        """Returns the folder of a result, current or older."""
        if self.find(wanted) is not None:
            return wanted.folder
        if self.older(wanted).is_dir():
            return self.older(wanted)
        raise StorageError(f'The result of "{wanted.name}" is no longer in {wanted.folder}. Run the script again.')

    def scratch(self, wanted: Wanted) -> Path:
        """Returns a folder for unfinished work, which survives a kill and is removed with completion of the result."""
        return self.folder / ".work" / f"{wanted.folder.name}-{wanted.fingerprint}"

    def _promote(self, wanted: Wanted) -> None:
        """Makes an older result the current one; a kill at any point loses neither."""
        folder, target = wanted.folder, self.older(wanted)
        if folder.exists():
            current = Manifest.read(folder)
            assert current is not None
            place = target.with_name(current.fingerprint)
            if current.fingerprint == wanted.fingerprint:  # made again by force
                place = target.with_name(f".draft-{wanted.fingerprint}-0-replaced")
            shutil.rmtree(place, ignore_errors=True)
            os.rename(folder, place)
        os.rename(target, folder)
        sweep(target.parent, wanted.fingerprint)


def _remade(draft: Path, folder: Path, replaced: Manifest) -> str:
    """Returns `Manifest.remade` of a new result, by comparison with the one that it replaces."""
    new, old = (folder_digest(place, but=(MANIFEST_NAME, CARD_NAME)) for place in (draft, folder))
    return replaced.remade if new == old else new


def row_ranges(indices: Iterable[int]) -> str:
    """Returns row indices as ranges: "3,7-9"."""
    ranges: list[list[int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _slug(name: str) -> str:
    """Turns a name into a folder name: lower case, hyphens for spaces, only portable characters."""
    slug = re.sub(r"[^\w\-#().,&+=@!~' ]", "_", name.lower()).strip()
    slug = re.sub(r"\s+", "-", slug).lstrip(".") or "_"
    content = slug.encode()
    if len(content) <= 120:  # file systems allow 255 bytes; names of locks and drafts hold up to two names and more
        return slug
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    return f"{content[:111].decode(errors='ignore')}~{digest}"
